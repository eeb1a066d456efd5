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
struct alignas(sizeof(T) * kCount) Values {
  T at[kCount];
};

}  // namespace bdk
