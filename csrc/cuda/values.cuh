// Adjacent values of any dtype as float32, in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace bdk {

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

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
      for (int j = 0; j < kEach; ++j) to[k + j] = widen(values[j]);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kCount; ++k) to[k] = k < count ? widen(from[k]) : 0.0f;
  }
}

}  // namespace bdk
