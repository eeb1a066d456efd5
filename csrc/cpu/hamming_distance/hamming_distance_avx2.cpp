// hamming_distance with AVX2: each half byte of a query selects a table with its distance to all 16
// half bytes, and half bytes of the codes are looked up in it. This needs no XOR, and the half
// bytes of the codes are split once for all queries of a group.
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
    count_half<0>(queries, block, bytes, counts);
    count_half<1>(queries, block, bytes, counts);
  }

 private:
  static constexpr int kVectors = kBlock / 32;

  // One half after the other: the sums of both would not fit into the registers.
  template <int kHalf, int kQueries>
  static void count_half(const Queries<kQueries>& queries, const uint8_t* block, int64_t bytes,
                         Counts* counts) {
    __m256i sum[kQueries][kVectors] = {};
    for (int64_t b = 0; b < bytes; ++b) {
      __m256i codes[kVectors];
#pragma GCC unroll 2
      for (int i = 0; i < kVectors; ++i) {
        codes[i] = load(block + kBlock * b + 32 * i);
        if (kHalf == 1) codes[i] = _mm256_srli_epi16(codes[i], 4);
        codes[i] = _mm256_and_si256(codes[i], _mm256_set1_epi8(15));
      }
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) {
        const __m256i different = load(queries.half[kHalf][b][q].of);
#pragma GCC unroll 2
        for (int i = 0; i < kVectors; ++i) {
          sum[q][i] = _mm256_add_epi8(sum[q][i], _mm256_shuffle_epi8(different, codes[i]));
          __asm__("" : "+x"(sum[q][i]));  // in its register: GCC would copy every sum in every turn
        }
      }
    }
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; ++q) {
#pragma GCC unroll 2
      for (int i = 0; i < kVectors; ++i) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(counts[q].part[kHalf] + 32 * i), sum[q][i]);
      }
    }
  }

  static __m256i load(const uint8_t* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  }
};

}  // namespace

const HammingRows kHammingAvx2 = hamming_rows<Bits>();

}  // namespace bdk
