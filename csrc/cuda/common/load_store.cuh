// Floating-point values of any of the three dtypes, as float32 in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "common/dtype.h"

namespace bdk {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Value i of a small table whose dtype is known at run time only.
__device__ inline float load_value(const void* table, int64_t i, int dtype) {
  if (dtype == kFloat16) return to_float(static_cast<const __half*>(table)[i]);
  if (dtype == kBFloat16) return to_float(static_cast<const __nv_bfloat16*>(table)[i]);
  return static_cast<const float*>(table)[i];
}

// kCount values in one vector.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Vec {
  T at[kCount];
};

// kBytes at once; the address is a multiple of kBytes.
template <int kBytes>
struct Chunk;
template <>
struct Chunk<8> {
  using Type = uint2;
};
template <>
struct Chunk<16> {
  using Type = uint4;
};

// kCount values from `from` on. `kVector` says that they may be read 16 bytes at a time (or all at
// once, if they are fewer), else each below `count` alone; the others are 0.
template <bool kVector, int kCount, class T>
__device__ inline void load_widened(const T* from, int64_t count, float (&to)[kCount]) {
  if constexpr (kVector) {
    constexpr int kBytes = kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16;
    constexpr int kEach = kBytes / sizeof(T);
    using Type = typename Chunk<kBytes>::Type;
#pragma unroll
    for (int k = 0; k < kCount; k += kEach) {
      alignas(16) T values[kEach];
      *reinterpret_cast<Type*>(values) = __ldg(reinterpret_cast<const Type*>(from + k));
#pragma unroll
      for (int j = 0; j < kEach; ++j) to[k + j] = to_float(values[j]);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kCount; ++k) to[k] = k < count ? to_float(from[k]) : 0.0f;
  }
}

}  // namespace bdk
