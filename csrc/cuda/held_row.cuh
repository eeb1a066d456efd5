// A row in the registers of one to sixteen warps: loads, stores and sums.
//
// Each warp holds kWarpChannels adjacent channels, lane l packets l, l + 32, ... of them: an
// address a tensor and offsets known to the compiler. A packet is 16 bytes where all tensors have
// one format and are aligned (Packed), else one value of whatever format its tensor has (Single).
// What lies beyond the row is held as 0.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include <type_traits>

#include "bitdance_kernels.h"
#include "common/dtype.h"
#include "cuda/modulated_norm_config.h"

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

// Calls body(T()) for the type T of a dtype code; every thread of a row takes the same way.
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

// `kBytes` (4, 8 or a multiple of 16) adjacent and aligned bytes.
template <int kBytes>
__device__ void copy_packet(const void* from, void* to) {
  if constexpr (kBytes == 4) {
    *static_cast<uint32_t*>(to) = *static_cast<const uint32_t*>(from);
  } else if constexpr (kBytes == 8) {
    *static_cast<uint2*>(to) = *static_cast<const uint2*>(from);
  } else {
#pragma unroll
    for (int k = 0; k < kBytes / 16; ++k) {
      static_cast<uint4*>(to)[k] = static_cast<const uint4*>(from)[k];
    }
  }
}

template <class T, int kWidth>
__device__ void load_packet(const T* from, float (&to)[kWidth]) {
  alignas(16) T values[kWidth];
  if constexpr (kWidth == 1) {
    values[0] = from[0];
  } else {
    copy_packet<kWidth * sizeof(T)>(from, values);
  }
#pragma unroll
  for (int j = 0; j < kWidth; ++j) to[j] = widen(values[j]);
}

template <class T, int kWidth>
__device__ void store_packet(T* to, const float* from) {
  alignas(16) T values[kWidth];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) values[j] = narrow<T>(from[j]);
  if constexpr (kWidth == 1) {
    to[0] = values[0];
  } else {
    copy_packet<kWidth * sizeof(T)>(values, to);
  }
}

template <class T>
struct Packed {
  static constexpr int kWidth = 16 / sizeof(T);
  template <class Body>
  __device__ static void with_type(int, const Body& body) {
    body(T());
  }
};

struct Single {
  static constexpr int kWidth = 1;
  template <class Body>
  __device__ static void with_type(int dtype, const Body& body) {
    bdk::with_type(dtype, body);
  }
};

// The part of a row that one thread holds.
template <class Format>
struct HeldRow {
  static constexpr int kWidth = Format::kWidth;
  static constexpr int kPackets = kHeld / kWidth;

  float value[kHeld];

  // First channel of a packet of this thread.
  __device__ static int channel(int packet) {
    const int thread = static_cast<int>(threadIdx.x);
    return thread / 32 * kWarpChannels + (packet * 32 + thread % 32) * kWidth;
  }
  __device__ static bool inside(int packet, int channels) { return channel(packet) < channels; }

  __device__ void load(const bdk_rows& tensor, int64_t row, int channels) {
    Format::with_type(tensor.dtype, [&](auto type) {
      using T = decltype(type);
      const T* from = static_cast<const T*>(tensor.data) + row * tensor.stride;
#pragma unroll
      for (int k = 0; k < kPackets; ++k) {
        float packet[kWidth] = {};
        if (inside(k, channels)) load_packet<T, kWidth>(from + channel(k), packet);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) value[k * kWidth + j] = packet[j];
      }
    });
  }

  __device__ void store(const bdk_rows& tensor, int64_t row, int channels) const {
    Format::with_type(tensor.dtype, [&](auto type) {
      using T = decltype(type);
      T* to = static_cast<T*>(tensor.data) + row * tensor.stride;
#pragma unroll
      for (int k = 0; k < kPackets; ++k) {
        if (inside(k, channels)) store_packet<T, kWidth>(to + channel(k), value + k * kWidth);
      }
    });
  }

  // As a tensor of that dtype would hold it.
  __device__ void round(int dtype) {
    Format::with_type(dtype, [&](auto type) {
#pragma unroll
      for (int e = 0; e < kHeld; ++e) value[e] = widen(narrow<decltype(type)>(value[e]));
    });
  }
};

// A packet of weight or bias, a vector of any dtype; `otherwise` where it is not given.
template <int kWidth>
__device__ void load_affine(const bdk_rows& vector, int channel, float otherwise,
                            float (&to)[kWidth]) {
  if (vector.data == nullptr) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) to[j] = otherwise;
    return;
  }
  with_type(vector.dtype, [&](auto type) {
    using T = decltype(type);
    load_packet<T, kWidth>(static_cast<const T*>(vector.data) + channel, to);
  });
}

// Sums over the threads of a row, the same in each, and the same from run to run. Two calls in
// succession need two workspaces: the second sum's barrier frees the first one.
template <int kSums>
__device__ void row_sums(float (&sum)[kSums], float (&shared)[kMostRowWarps][kSums]) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
#pragma unroll
    for (int s = 0; s < kSums; ++s) sum[s] += __shfl_xor_sync(0xFFFFFFFFu, sum[s], lanes);
  }
  const int warps = static_cast<int>(blockDim.x) / 32;
  if (warps == 1) return;  // other rows of the block are not waited for
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
