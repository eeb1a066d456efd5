// hamming_distance with AVX-512, by the same tables as with AVX2. (Processors with a popcount for
// bytes use hamming_distance_bitalg.cpp.)
#include <immintrin.h>

#include "cpu/hamming_distance/hamming_distance.h"

namespace bdk {
namespace {

struct Bits {
  template <int kQueries>
  using Queries = DifferentBitsOfQueries<kQueries>;

  template <int kQueries>
  static void count(const Queries<kQueries>& queries, const uint8_t* block, int64_t bytes,
                    Counts* counts) {
    const __m512i half = _mm512_set1_epi8(15);
    __m512i low[kQueries], high[kQueries];
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q) low[q] = high[q] = _mm512_setzero_si512();
    for (int64_t b = 0; b < bytes; ++b) {
      const __m512i codes = _mm512_loadu_si512(block + kBlock * b);
      const __m512i low_half = _mm512_and_si512(codes, half);
      const __m512i high_half = _mm512_and_si512(_mm512_srli_epi16(codes, 4), half);
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) {
        low[q] = _mm512_add_epi8(low[q], look_up(queries.half[0][b][q], low_half));
        high[q] = _mm512_add_epi8(high[q], look_up(queries.half[1][b][q], high_half));
      }
    }
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q) {
      _mm512_storeu_si512(counts[q].part[0], low[q]);
      _mm512_storeu_si512(counts[q].part[1], high[q]);
    }
  }

 private:
  static __m512i look_up(const DifferentBits& different, __m512i codes) {
    const __m128i table = _mm_load_si128(reinterpret_cast<const __m128i*>(different.of));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes);
  }
};

}  // namespace

const HammingRows kHammingAvx512 = hamming_rows<Bits>();

}  // namespace bdk
