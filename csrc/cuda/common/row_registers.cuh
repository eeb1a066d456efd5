// A row in the registers of one to sixteen warps: loads, stores and sums.
//
// Each warp holds kWarpChannels adjacent channels, lane l packets l, l + 32, ... of eight: an
// address per tensor and offsets known to the compiler. Packets are moved 16 bytes at a time if all
// tensors have one format and are aligned (Packed), else one value at a time, each tensor in its
// own format (Single). Either way a thread holds the same channels, so the sums are bitwise the
// same. Channels past the end of the row are 0.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include <type_traits>

#include "bitdance_kernels_cuda.h"
#include "common/dtype.h"
#include "cuda/common/modulated_norm_config.h"

namespace bdk {

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ T narrow(float value) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}

// Calls body(T()) for the type T of a dtype code; all threads of a row take the same branch.
template <class Body>
__device__ void with_type(int dtype, const Body& body) {
  if (dtype == kFloat32) {
    body(float());
  } else if (dtype == kFloat16) {
    body(__half());
  } else {
    body(__nv_bfloat16());
  }
}

// A packet of `count` values; fewer than kWidth of them only at the end of a row of Singles.
template <class T>
struct Packed {
  template <class Body>
  __device__ static void with_type(int, const Body& body) {
    body(T());
  }
  template <class V>
  __device__ static void load(const V* from, int count, float* to) {
    if (count <= 0) return;
    alignas(16) V values[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth * int{sizeof(V)} / 16; ++k) {
      reinterpret_cast<uint4*>(values)[k] = reinterpret_cast<const uint4*>(from)[k];
    }
#pragma unroll
    for (int j = 0; j < kWidth; ++j) to[j] = widen(values[j]);
  }
  template <class V>
  __device__ static void store(V* to, int count, const float* from) {
    if (count <= 0) return;
    alignas(16) V values[kWidth];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = narrow<V>(from[j]);
#pragma unroll
    for (int k = 0; k < kWidth * int{sizeof(V)} / 16; ++k) {
      reinterpret_cast<uint4*>(to)[k] = reinterpret_cast<const uint4*>(values)[k];
    }
  }
};

struct Single {
  template <class Body>
  __device__ static void with_type(int dtype, const Body& body) {
    bdk::with_type(dtype, body);
  }
  template <class V>
  __device__ static void load(const V* from, int count, float* to) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (j < count) to[j] = widen(from[j]);
    }
  }
  template <class V>
  __device__ static void store(V* to, int count, const float* from) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (j < count) to[j] = narrow<V>(from[j]);
    }
  }
};

// The part of a row that one thread holds.
template <class Format>
struct RowRegisters {
  float value[kThreadChannels];

  // First channel of a packet of this thread.
  __device__ static int channel(int packet) {
    const int thread = static_cast<int>(threadIdx.x);
    return thread / 32 * kWarpChannels + (packet * 32 + thread % 32) * kWidth;
  }
  __device__ static bool inside(int e, int channels) {
    return channel(e / kWidth) + e % kWidth < channels;
  }

  __device__ void load(const bdk_rows& tensor, int64_t row, int channels) {
#pragma unroll
    for (int e = 0; e < kThreadChannels; ++e) value[e] = 0.0f;
    Format::with_type(tensor.dtype, [&](auto type) {
      using T = decltype(type);
      const T* from = static_cast<const T*>(tensor.data) + row * tensor.stride;
#pragma unroll
      for (int k = 0; k < kPackets; ++k) {
        Format::load(from + channel(k), channels - channel(k), value + k * kWidth);
      }
    });
  }

  __device__ void store(const bdk_rows& tensor, int64_t row, int channels) const {
    Format::with_type(tensor.dtype, [&](auto type) {
      using T = decltype(type);
      T* to = static_cast<T*>(tensor.data) + row * tensor.stride;
#pragma unroll
      for (int k = 0; k < kPackets; ++k) {
        Format::store(to + channel(k), channels - channel(k), value + k * kWidth);
      }
    });
  }

  // Rounds to the values that a tensor of that dtype would hold.
  __device__ void round(int dtype) {
    Format::with_type(dtype, [&](auto type) {
#pragma unroll
      for (int e = 0; e < kThreadChannels; ++e) value[e] = widen(narrow<decltype(type)>(value[e]));
    });
  }
};

// A packet of weight or bias, a vector of any dtype; `otherwise` if it is absent.
template <class Format>
__device__ void load_affine(const bdk_rows& vector, int channel, int channels, float otherwise,
                            float (&to)[kWidth]) {
#pragma unroll
  for (int j = 0; j < kWidth; ++j) to[j] = otherwise;
  if (vector.data == nullptr) return;
  with_type(vector.dtype, [&](auto type) {
    using T = decltype(type);
    Format::load(static_cast<const T*>(vector.data) + channel, channels - channel, to);
  });
}

// Sums over the threads of a row, the same in each thread and in each run. Two successive calls
// need two workspaces: the barrier of the second call frees the first workspace.
template <int kSums>
__device__ void row_sums(float (&sum)[kSums], float (&shared)[kMaxRowWarps][kSums]) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
#pragma unroll
    for (int s = 0; s < kSums; ++s) sum[s] += __shfl_xor_sync(0xFFFFFFFFu, sum[s], lanes);
  }
  const int warps = static_cast<int>(blockDim.x) / 32;
  if (warps == 1) return;  // no barrier: the block may hold other rows
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int s = 0; s < kSums; ++s) shared[threadIdx.x / 32][s] = sum[s];
  }
  __syncthreads();
#pragma unroll
  for (int s = 0; s < kSums; ++s) sum[s] = 0.0f;
  for (int warp = 0; warp < warps; ++warp) {
#pragma unroll
    for (int s = 0; s < kSums; ++s) sum[s] += shared[warp][s];
  }
}

}  // namespace bdk
