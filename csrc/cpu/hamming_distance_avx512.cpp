// hamming_distance with AVX-512: one vector holds a word of eight codes, bits are counted by
// looking up half bytes. (Processors that count bits themselves use hamming_distance_vpopcnt.cpp.)
#include <immintrin.h>

#include "cpu/hamming_distance.h"

namespace bdk {
namespace {

struct Eight {
  static __m512i bytes(__m512i x) {
    const __m512i table =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i half = _mm512_set1_epi8(15);
    const __m512i low = _mm512_shuffle_epi8(table, _mm512_and_si512(x, half));
    const __m512i high =
        _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(x, 4), half));
    return _mm512_add_epi8(low, high);
  }

  static __m256i distances(const uint64_t* a, const uint64_t* block, int64_t words) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t w = 0; w < words; ++w) {
      const __m512i differ = _mm512_xor_si512(_mm512_set1_epi64(static_cast<int64_t>(a[w])),
                                              _mm512_loadu_si512(block + kBlock * w));
      sum = _mm512_add_epi64(sum, _mm512_sad_epu8(bytes(differ), _mm512_setzero_si512()));
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

const HammingRows kHammingAvx512 = {distance_row<Eight>, nearest_rows<Eight>};

}  // namespace bdk
