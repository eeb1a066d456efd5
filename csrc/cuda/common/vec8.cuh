// Eight adjacent values of one byte of bits, in registers.
#pragma once

#include <stdint.h>

#include <type_traits>

namespace bdk {

// Patterns of a format of 32, 16 or 8 bits.
template <class Pattern>
struct Vec8 {
  using Word = std::conditional_t<sizeof(Pattern) == 1, uint2, uint4>;
  static constexpr int kLoads = 8 * sizeof(Pattern) / sizeof(Word);

  alignas(16) Pattern pattern[8];

  // `kVector` says that x is aligned to a word.
  template <bool kVector>
  __device__ void load(const Pattern* x) {
    if constexpr (kVector) {
      Word* words = reinterpret_cast<Word*>(pattern);
#pragma unroll
      for (int k = 0; k < kLoads; ++k) words[k] = __ldg(reinterpret_cast<const Word*>(x) + k);
    } else {
#pragma unroll
      for (int k = 0; k < 8; ++k) pattern[k] = x[k];
    }
  }

  // y is aligned to a word.
  __device__ void store(Pattern* y) const {
    const Word* words = reinterpret_cast<const Word*>(pattern);
#pragma unroll
    for (int k = 0; k < kLoads; ++k) reinterpret_cast<Word*>(y)[k] = words[k];
  }
};

}  // namespace bdk
