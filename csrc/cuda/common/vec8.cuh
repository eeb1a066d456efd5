// Eight adjacent values of one byte of bits, in registers.
#pragma once

#include <stdint.h>

namespace bdk {

// Patterns of a 32-bit or a 16-bit format.
template <class Pattern>
struct Vec8 {
  static constexpr int kLoads = 8 * sizeof(Pattern) / 16;

  alignas(16) Pattern pattern[8];

  // `kVector` says that x may be read 16 bytes at a time.
  template <bool kVector>
  __device__ void load(const Pattern* x) {
    if constexpr (kVector) {
      uint4* words = reinterpret_cast<uint4*>(pattern);
#pragma unroll
      for (int k = 0; k < kLoads; ++k) words[k] = __ldg(reinterpret_cast<const uint4*>(x) + k);
    } else {
#pragma unroll
      for (int k = 0; k < 8; ++k) pattern[k] = x[k];
    }
  }

  // y is aligned to 16 bytes.
  __device__ void store(Pattern* y) const {
    const uint4* words = reinterpret_cast<const uint4*>(pattern);
#pragma unroll
    for (int k = 0; k < kLoads; ++k) reinterpret_cast<uint4*>(y)[k] = words[k];
  }
};

}  // namespace bdk
