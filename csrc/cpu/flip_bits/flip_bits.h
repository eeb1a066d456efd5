// The inner loops of flip_bits and flip_signs, one set per instruction set.
#pragma once

#include <stdint.h>

#include "common/flips.h"

namespace bdk {

// Bytes that are drawn side by side.
constexpr int kFlipLanes = 32;

struct FlipLoops {
  // The flips of bytes first .. first + kFlipLanes - 1.
  void (*draw)(FlipKey key, uint64_t first, uint8_t* flips);
  // 8 * bytes values whose sign bits change where a bit of `flips` is set.
  void (*negate_32)(const uint32_t* x, uint32_t* y, const uint8_t* flips, int bytes);
  void (*negate_16)(const uint16_t* x, uint16_t* y, const uint8_t* flips, int bytes);
};

extern const FlipLoops kFlipAvx2, kFlipAvx512;

}  // namespace bdk
