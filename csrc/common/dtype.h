// The dtype codes that cross the C interface, and the bit patterns that sign packing needs.
#pragma once

#include <stdint.h>

namespace bdk {

enum Dtype : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kUint8 = 3 };

// Whether the code is that of a float format; kUint8 is an input of sign packing alone.
constexpr bool is_dtype(int code) { return code >= kFloat32 && code <= kBFloat16; }

// A float pattern, read as an integer, is > 0 in value exactly when 1 <= pattern <=
// kInfinity: the sign bit is clear, and neither zero nor NaN. Integer comparisons also stay exact
// when the processor treats denormals as zero.
constexpr uint32_t kInfinity32 = 0x7F800000u;
constexpr uint16_t kInfinity16 = 0x7C00u;
constexpr uint16_t kInfinityB16 = 0x7F80u;
constexpr uint8_t kMaxUint8 = 0xFFu;  // bytes are > 0 from pattern 1 to this one

constexpr uint32_t kOne32 = 0x3F800000u;
constexpr uint16_t kOne16 = 0x3C00u;
constexpr uint16_t kOneB16 = 0x3F80u;

}  // namespace bdk
