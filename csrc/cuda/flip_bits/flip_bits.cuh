// Device code of flip_bits and flip_signs: a thread draws the eight flips of a byte.
#pragma once

#include <stdint.h>

#include "common/flips.h"
#include "cuda/common/vec8.cuh"
#include "cuda/flip_bits/flip_bits_config.h"

namespace bdk {

struct FlipParams {
  const void* from;
  void* to;
  int64_t bytes;       // of bits: values / 8 for flip_signs
  const int64_t* key;  // (seed, offset), read on the device, so that a captured graph can change it
  int64_t threshold;
};

__global__ void __launch_bounds__(kFlipThreads) flip_bits_kernel(const FlipParams params) {
  const FlipKey key = flip_key(params.key, params.threshold);
  const uint8_t* packed = static_cast<const uint8_t*>(params.from);
  uint8_t* flipped = static_cast<uint8_t*>(params.to);
  const int64_t round = int64_t{gridDim.x} * kFlipThreads;
  int64_t byte = int64_t{blockIdx.x} * kFlipThreads + threadIdx.x;
  for (; byte < params.bytes; byte += round * kFlipBitsUnroll) {
#pragma unroll
    for (int u = 0; u < kFlipBitsUnroll; ++u) {
      const int64_t i = byte + u * round;
      if (i < params.bytes) {
        flipped[i] = static_cast<uint8_t>(packed[i] ^ flips_of_byte(key, static_cast<uint64_t>(i)));
      }
    }
  }
}

template <class Pattern, bool kVector>
__global__ void __launch_bounds__(kFlipThreads) flip_signs_kernel(const FlipParams params) {
  constexpr int kSign = 8 * sizeof(Pattern) - 1;
  const FlipKey key = flip_key(params.key, params.threshold);
  const Pattern* x = static_cast<const Pattern*>(params.from);
  Pattern* y = static_cast<Pattern*>(params.to);
  const int64_t round = int64_t{gridDim.x} * kFlipThreads;
  int64_t byte = int64_t{blockIdx.x} * kFlipThreads + threadIdx.x;
  for (; byte < params.bytes; byte += round * kFlipSignsUnroll) {
#pragma unroll
    for (int u = 0; u < kFlipSignsUnroll; ++u) {
      const int64_t i = byte + u * round;
      if (i >= params.bytes) break;
      Vec8<Pattern> values;
      values.template load<kVector>(x + i * 8);
      const uint32_t flips = flips_of_byte(key, static_cast<uint64_t>(i));
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        values.pattern[k] ^= static_cast<Pattern>((flips >> k & 1u) << kSign);
      }
      values.store(y + i * 8);
    }
  }
}

}  // namespace bdk
