// hamming_distance on processors with a popcount for bytes (AVX-512 BITALG).
#include <immintrin.h>

#include "cpu/hamming_distance/hamming_distance.h"

namespace bdk {
namespace {

struct Bits {
  template <int kQueries>
  using Queries = BytesOfQueries<kQueries>;

  template <int kQueries>
  static void count(const Queries<kQueries>& queries, const uint8_t* block, int64_t bytes,
                    Counts* counts) {
    for (int part = 0; part < 2; ++part) {  // half of the bytes each
      const int64_t end = part == 0 ? bytes / 2 : bytes;
      __m512i sum[kQueries];
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) sum[q] = _mm512_setzero_si512();
      for (int64_t b = part == 0 ? 0 : bytes / 2; b < end; ++b) {
        const __m512i codes = _mm512_loadu_si512(block + kBlock * b);
#pragma GCC unroll 4
        for (int q = 0; q < kQueries; ++q) {
          const __m512i query =
              _mm512_set1_epi8(static_cast<char>(queries.a[q * queries.stride + b]));
          sum[q] = _mm512_add_epi8(sum[q], _mm512_popcnt_epi8(_mm512_xor_si512(query, codes)));
        }
      }
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) _mm512_storeu_si512(counts[q].part[part], sum[q]);
    }
  }
};

}  // namespace

const HammingRows kHammingBitalg = hamming_rows<Bits>();

}  // namespace bdk
