// hamming_distance where the processor counts the bits of a word itself (AVX-512 VPOPCNTDQ).
#include <immintrin.h>

#include "cpu/hamming_distance.h"

namespace bdk {
namespace {

struct Eight {
  static __m256i distances(const uint64_t* a, const uint64_t* block, int64_t words) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t w = 0; w < words; ++w) {
      const __m512i differ = _mm512_xor_si512(_mm512_set1_epi64(static_cast<int64_t>(a[w])),
                                              _mm512_loadu_si512(block + kBlock * w));
      sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(differ));
    }
    return _mm512_cvtepi64_epi32(sum);
  }

  static void store(__m256i values, int32_t* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), values);
  }

  static uint32_t below(__m256i values, int32_t limit) {
    return _mm256_cmplt_epi32_mask(values, _mm256_set1_epi32(limit));
  }
};

}  // namespace

const HammingRows kHammingVpopcnt = {distance_row<Eight>, nearest_rows<Eight>};

}  // namespace bdk
