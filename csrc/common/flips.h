// Which bits flip_bits and flip_signs flip, the same in C++ and CUDA.
//
// bitdance_kernels/binary/flip_bits/op.py defines it: bit j of byte i flips where half-word j of
// Philox4x32-10 at counter (i mod 2^32, i div 2^32, offset, 0xB175F11D) is below the threshold.
#pragma once

#include <stdint.h>

#include "common/host_device.h"
#include "common/philox.h"

namespace bdk {

constexpr uint32_t kFlipDomain = 0xB175F11Du;
constexpr int64_t kMaxFlipThreshold = 32768;  // rate 1

struct FlipKey {
  uint32_t seed_low, seed_high, offset;
  uint32_t threshold;  // in [0, 2^15]
};

// key: (seed, offset).
BDK_HOST_DEVICE static inline FlipKey flip_key(const int64_t* key, int64_t threshold) {
  const uint64_t seed = static_cast<uint64_t>(key[0]);
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
          static_cast<uint32_t>(key[1]), static_cast<uint32_t>(threshold)};
}

// The flips of a byte from the words drawn for it.
BDK_HOST_DEVICE static inline uint32_t flips_of_words(FlipKey key, PhiloxWords drawn) {
  const uint32_t threshold = key.threshold << 16;
  uint32_t flips = 0;
  for (int w = 0; w < 4; ++w) {
    flips |= (drawn.word[w] << 16 < threshold ? 1u : 0u) << (2 * w);
    // Here the lower half-word decides nothing.
    flips |= (drawn.word[w] < threshold ? 1u : 0u) << (2 * w + 1);
  }
  return flips;
}

BDK_HOST_DEVICE static inline PhiloxWords flip_counter(FlipKey key, uint64_t byte) {
  return {
      {static_cast<uint32_t>(byte), static_cast<uint32_t>(byte >> 32), key.offset, kFlipDomain}};
}

BDK_HOST_DEVICE static inline uint32_t flips_of_byte(FlipKey key, const PhiloxKeys& keys,
                                                     uint64_t byte) {
  return flips_of_words(key, philox4x32(flip_counter(key, byte), keys));
}

// Without keys in memory, which loops that the compiler vectorises would have for every lane.
BDK_HOST_DEVICE static inline uint32_t flips_of_byte(FlipKey key, uint64_t byte) {
  return flips_of_words(key, philox4x32(flip_counter(key, byte), key.seed_low, key.seed_high));
}

}  // namespace bdk
