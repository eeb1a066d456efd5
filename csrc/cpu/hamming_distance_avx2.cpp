// hamming_distance with AVX2: bits are counted by looking up half bytes.
#include <immintrin.h>

#include "cpu/hamming_distance.h"

namespace bdk {
namespace {

// A byte counts up to 8 a word; after this many words it might overflow.
constexpr int64_t kMostWords = 31;

struct Eight {
  static __m256i bytes(__m256i x) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1,
                                           2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i half = _mm256_set1_epi8(15);
    const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(x, half));
    const __m256i high =
        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), half));
    return _mm256_add_epi8(low, high);
  }

  static __m256i load(const uint64_t* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  }

  static __m256i distances(const uint64_t* a, const uint64_t* block, int64_t words) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i low = zero, high = zero;  // sums of four codes each, 64 bits a code
    for (int64_t first = 0; first < words; first += kMostWords) {
      const int64_t end = words - first < kMostWords ? words : first + kMostWords;
      __m256i low_bytes = zero, high_bytes = zero;
      for (int64_t w = first; w < end; ++w) {
        const __m256i word = _mm256_set1_epi64x(static_cast<int64_t>(a[w]));
        const uint64_t* codes = block + kBlock * w;
        low_bytes = _mm256_add_epi8(low_bytes, bytes(_mm256_xor_si256(word, load(codes))));
        high_bytes = _mm256_add_epi8(high_bytes, bytes(_mm256_xor_si256(word, load(codes + 4))));
      }
      low = _mm256_add_epi64(low, _mm256_sad_epu8(low_bytes, zero));
      high = _mm256_add_epi64(high, _mm256_sad_epu8(high_bytes, zero));
    }
    // The even 32-bit halves of both, put in order.
    const __m256i even = _mm256_castps_si256(
        _mm256_shuffle_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high), 0x88));
    return _mm256_permute4x64_epi64(even, 0xD8);
  }

  static void store(__m256i values, int32_t* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), values);
  }

  static uint32_t below(__m256i values, int32_t limit) {
    const __m256i under = _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), values);
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(under)));
  }
};

}  // namespace

const HammingRows kHammingAvx2 = {distance_row<Eight>, nearest_rows<Eight>};

}  // namespace bdk
