// The 16-bit types of CUDA, and their rounding. NaN is 0x7FFF, as on a card.
#pragma once

#include <stdint.h>
#include <string.h>

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

namespace bdk {

inline uint16_t narrow(float x, __half) {
  if (x != x) return 0x7FFF;
  const _Float16 value = static_cast<_Float16>(x);
  uint16_t bits;
  memcpy(&bits, &value, 2);
  return bits;
}
inline uint16_t narrow(float x, __nv_bfloat16) {
  if (x != x) return 0x7FFF;
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}
inline float widen(uint16_t bits, __half) {
  _Float16 value;
  memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}
inline float widen(uint16_t bits, __nv_bfloat16) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

}  // namespace bdk
