// Float8 values (e4m3: sign, 4 bits of exponent, 3 of mantissa) in registers.
#pragma once

#include "cuda/common/mma.cuh"

namespace bdk {

// How far the exponent of a float8 value lies above that of T when it is moved into its place, and
// the power of two, twice, that makes up for the different biases.
template <class T>
struct Float8Bits;
template <>
struct Float8Bits<__half> {
  static constexpr int kShift = 1;
  static constexpr uint32_t kFactor = 0x5C005C00u;  // 2^8
};
template <>
struct Float8Bits<__nv_bfloat16> {
  static constexpr int kShift = 4;
  static constexpr uint32_t kFactor = 0x7B807B80u;  // 2^120
};

// The two lower or the two upper of four float8 values, exactly, as T. There is no NaN: its bits
// are taken for 480.
template <class T>
__device__ inline uint32_t widen_float8(uint32_t four, bool upper) {
  const uint32_t pair = __byte_perm(four, 0, upper ? 0x3424 : 0x1404);  // each in an upper byte
  const uint32_t small = (pair & 0x80008000u) | (pair & 0x7F007F00u) >> Float8Bits<T>::kShift;
  return multiply_pairs<T>(small, Float8Bits<T>::kFactor);
}

// A lane's part of an operand A of values of T, from what pack_weight makes of it.
template <class T>
__device__ inline void fragment(const uint4& packed, uint32_t (&a)[4]) {
  a[0] = packed.x;
  a[1] = packed.y;
  a[2] = packed.z;
  a[3] = packed.w;
}
template <class T>
__device__ inline void fragment(const uint2& packed, uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = widen_float8<T>(i < 2 ? packed.x : packed.y, i % 2 != 0);
}

}  // namespace bdk
