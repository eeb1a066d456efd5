// Device code of flip_bits and flip_signs: a thread draws the flips of whole bytes.
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

// The keys of all rounds in registers. The compiler would add them up again for every byte, which
// takes a third of the instructions, did it know what they are.
__device__ inline PhiloxKeys round_keys(FlipKey key) {
  PhiloxKeys keys = philox_keys(key.seed_low, key.seed_high);
#pragma unroll
  for (int round = 0; round < kPhiloxRounds; ++round) {
    asm volatile("" : "+r"(keys.key0[round]), "+r"(keys.key1[round]));
  }
  return keys;
}

// A thread takes eight bytes at a time; `kVector` says that both pointers are aligned to eight.
template <bool kVector>
__global__ void __launch_bounds__(kFlipThreads) flip_bits_kernel(const FlipParams params) {
  const FlipKey key = flip_key(params.key, params.threshold);
  const PhiloxKeys keys = round_keys(key);
  const uint8_t* packed = static_cast<const uint8_t*>(params.from);
  uint8_t* flipped = static_cast<uint8_t*>(params.to);
  const int64_t round = int64_t{gridDim.x} * kFlipThreads * 8;
  int64_t first = (int64_t{blockIdx.x} * kFlipThreads + threadIdx.x) * 8;
  for (; first + 8 <= params.bytes; first += round) {
    alignas(8) uint8_t bytes[8];
    uint2* words = reinterpret_cast<uint2*>(bytes);
    if constexpr (kVector) {
      *words = __ldg(reinterpret_cast<const uint2*>(packed + first));
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) bytes[i] = packed[first + i];
    }
    uint32_t flips[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      flips[i / 4] |= flips_of_byte(key, keys, static_cast<uint64_t>(first | i)) << (i % 4 * 8);
    }
    words->x ^= flips[0];
    words->y ^= flips[1];
    if constexpr (kVector) {
      *reinterpret_cast<uint2*>(flipped + first) = *words;
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) flipped[first + i] = bytes[i];
    }
  }
#pragma unroll 1
  for (; first < params.bytes; ++first) {  // the last bytes, fewer than eight, of one thread
    const uint32_t flips = flips_of_byte(key, keys, static_cast<uint64_t>(first));
    flipped[first] = static_cast<uint8_t>(packed[first] ^ flips);
  }
}

template <class Pattern, bool kVector>
__global__ void __launch_bounds__(kFlipThreads) flip_signs_kernel(const FlipParams params) {
  constexpr int kSign = 8 * sizeof(Pattern) - 1;
  const FlipKey key = flip_key(params.key, params.threshold);
  const PhiloxKeys keys = round_keys(key);
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
      const uint32_t flips = flips_of_byte(key, keys, static_cast<uint64_t>(i));
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        values.pattern[k] ^= static_cast<Pattern>((flips >> k & 1u) << kSign);
      }
      values.store(y + i * 8);
    }
  }
}

}  // namespace bdk
