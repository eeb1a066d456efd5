// The inner loop of flip_bits and flip_signs, one per instruction set: which bits flip.
//
// bitdance_kernels/binary/flip_bits/op.py defines it: bit j of byte i flips where half-word j of
// Philox4x32-10 at counter (i mod 2^32, i div 2^32, offset, 0xB175F11D) is below the threshold.
#pragma once

#include <stdint.h>

#include "common/philox.h"

namespace bdk {

constexpr uint32_t kFlipDomain = 0xB175F11Du;
// Bytes that are drawn side by side: loops of this length become vector code.
constexpr int kFlipLanes = 16;

struct FlipKey {
  uint32_t seed_low, seed_high, offset;
  uint32_t threshold;  // in [0, 2^15]
};

// The flips of bytes first .. first + kFlipLanes - 1.
using FlipLanes = void (*)(FlipKey key, int64_t first, uint8_t* flips);

void flip_lanes_avx2(FlipKey key, int64_t first, uint8_t* flips);
void flip_lanes_avx512(FlipKey key, int64_t first, uint8_t* flips);

static inline void flip_lanes(FlipKey key, int64_t first, uint8_t* flips) {
  uint32_t c0[kFlipLanes], c1[kFlipLanes], c2[kFlipLanes], c3[kFlipLanes];
#pragma omp simd
  for (int i = 0; i < kFlipLanes; ++i) {
    const uint64_t byte = static_cast<uint64_t>(first) + static_cast<uint64_t>(i);
    c0[i] = static_cast<uint32_t>(byte);
    c1[i] = static_cast<uint32_t>(byte >> 32);
    c2[i] = key.offset;
    c3[i] = kFlipDomain;
  }
  uint32_t key0 = key.seed_low, key1 = key.seed_high;
  for (int round = 0; round < 10; ++round) {
#pragma omp simd
    for (int i = 0; i < kFlipLanes; ++i) {
      const PhiloxWords next = philox_round({{c0[i], c1[i], c2[i], c3[i]}}, key0, key1);
      c0[i] = next.word[0];
      c1[i] = next.word[1];
      c2[i] = next.word[2];
      c3[i] = next.word[3];
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  const uint32_t below = key.threshold;
#pragma omp simd
  for (int i = 0; i < kFlipLanes; ++i) {
    uint32_t byte = (c0[i] & 0xFFFFu) < below ? 1u : 0u;
    byte |= c0[i] >> 16 < below ? 2u : 0u;
    byte |= (c1[i] & 0xFFFFu) < below ? 4u : 0u;
    byte |= c1[i] >> 16 < below ? 8u : 0u;
    byte |= (c2[i] & 0xFFFFu) < below ? 16u : 0u;
    byte |= c2[i] >> 16 < below ? 32u : 0u;
    byte |= (c3[i] & 0xFFFFu) < below ? 64u : 0u;
    byte |= c3[i] >> 16 < below ? 128u : 0u;
    flips[i] = static_cast<uint8_t>(byte);
  }
}

}  // namespace bdk
