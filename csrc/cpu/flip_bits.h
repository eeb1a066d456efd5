// The inner loops of flip_bits and flip_signs, one set per instruction set.
//
// bitdance_kernels/binary/flip_bits/op.py defines which bits flip: bit j of byte i does where
// half-word j of Philox4x32-10 at counter (i mod 2^32, i div 2^32, offset, 0xB175F11D) is below the
// threshold.
#pragma once

#include <stdint.h>

namespace bdk {

constexpr uint32_t kFlipDomain = 0xB175F11Du;
// Bytes that are drawn side by side.
constexpr int kFlipLanes = 32;

struct FlipKey {
  uint32_t seed_low, seed_high, offset;
  uint32_t threshold;  // in [0, 2^15]
};

struct FlipLoops {
  // The flips of bytes first .. first + kFlipLanes - 1.
  void (*draw)(FlipKey key, uint64_t first, uint8_t* flips);
  // 8 * bytes values whose sign bits change where a bit of `flips` is set.
  void (*negate_32)(const uint32_t* x, uint32_t* y, const uint8_t* flips, int bytes);
  void (*negate_16)(const uint16_t* x, uint16_t* y, const uint8_t* flips, int bytes);
};

extern const FlipLoops kFlipAvx2, kFlipAvx512;

}  // namespace bdk
