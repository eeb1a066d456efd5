// Device code of group_norm_silu on channels-last maps.
//
// Blocks of the large kernels take a chunk of an image's positions and up to kGroupNormThreads
// vectors of channels; a thread keeps its vector, so that coefficients are read once and sums stay
// in registers. Blocks of the small kernels take a group of an image and combine its chunks in
// order: no atomics, and the same result in every run.
#pragma once

#include <stdint.h>

#include "bitdance_kernels_cuda.h"
#include "common/group_norm.h"
#include "cuda/common/load_store.cuh"
#include "cuda/group_norm_silu/group_norm_silu_config.h"

namespace bdk {

struct GroupNormParams {
  const void *x, *grad;
  void *y, *grad_x;
  bdk_rows weight, bias;                                     // [channels]; without data: absent
  bdk_rows scale, shift;                                     // a row for each image
  float *grad_weight, *grad_bias, *grad_scale, *grad_shift;  // [images, channels] each; or null
  float2* moments;                                           // [images, chunks, channels]
  float2* sums;                                              // [images, chunks, channels]
  float* coefficients;       // [images, 5, channels]: mean, a, d, q, r
  int64_t positions, chunk;  // positions of an image, and of a chunk
  int chunks, channels, groups;
  int vectors, columns;  // max vectors of channels in a block, and blocks that share a position
  double eps;
};

// Where a thread of the large kernels works. `row` counts positions from the chunk's first one.
template <int kVec>
struct GroupNormPlace {
  int64_t image, first, last;
  int64_t slot;  // image * chunks + chunk
  int channel, row, rows;
  bool active;

  __device__ explicit GroupNormPlace(const GroupNormParams& params) {
    const int64_t block = blockIdx.x;
    slot = block / params.columns;
    image = slot / params.chunks;
    first = slot % params.chunks * params.chunk;
    last = first + params.chunk < params.positions ? first + params.chunk : params.positions;
    const int thread = static_cast<int>(threadIdx.x);
    const int column = static_cast<int>(block % params.columns);
    rows = kGroupNormThreads / params.vectors;
    row = thread / params.vectors;
    channel = (column * params.vectors + thread % params.vectors) * kVec;
    active = row < rows && channel < params.channels;
  }
  __device__ int64_t begin() const { return first + row; }
  __device__ int64_t offset(const GroupNormParams& params, int64_t position) const {
    return (image * params.positions + position) * params.channels + channel;
  }
  // Number of positions of the threads of a row.
  __device__ int64_t count(int block_row) const {
    return first + block_row < last ? (last - first - block_row + rows - 1) / rows : 0;
  }
};

template <class T, int kVec>
__device__ inline void group_norm_load(const void* from, int64_t offset, float (&to)[kVec]) {
  const Vec<T, kVec> values =
      *reinterpret_cast<const Vec<T, kVec>*>(static_cast<const T*>(from) + offset);
#pragma unroll
  for (int j = 0; j < kVec; ++j) to[j] = to_float(values.at[j]);
}

template <class T, int kVec>
__device__ inline void group_norm_store(void* to, int64_t offset, const float (&from)[kVec]) {
  Vec<T, kVec> values;
#pragma unroll
  for (int j = 0; j < kVec; ++j) values.at[j] = from_float<T>(from[j]);
  *reinterpret_cast<Vec<T, kVec>*>(static_cast<T*>(to) + offset) = values;
}

// Mean, a and d of a thread's channels, and q and r behind them.
template <int kVec>
struct GroupNormChannels {
  float mean[kVec], a[kVec], d[kVec];

  __device__ GroupNormChannels(const GroupNormParams& params, int64_t image, int channel) {
    load(params, image, channel, 0, mean);
    load(params, image, channel, 1, a);
    load(params, image, channel, 2, d);
  }
  __device__ static void load(const GroupNormParams& params, int64_t image, int channel, int which,
                              float (&to)[kVec]) {
    const float* from = params.coefficients + (image * 5 + which) * params.channels + channel;
#pragma unroll
    for (int j = 0; j < kVec; ++j) to[j] = from[j];
  }
};

__device__ inline float group_norm_sigmoid(float z) { return 1.0f / (1.0f + expf(-z)); }

// Gradient of z: silu'(z) = s (1 + z (1 - s)) with s = sigmoid(z).
template <bool kSilu>
__device__ inline float group_norm_grad_z(float grad, float z) {
  if constexpr (!kSilu) return grad;
  const float s = group_norm_sigmoid(z);
  return grad * s * (1.0f + z * (1.0f - s));
}

extern __shared__ float2 group_norm_memory[];  // kGroupNormThreads * kVec

// Mean and sum of squared distances to it of every channel in a chunk.
template <class T, int kVec>
__global__ void __launch_bounds__(kGroupNormThreads)
    group_norm_moments_kernel(const GroupNormParams params) {
  const GroupNormPlace<kVec> place(params);
  // Each thread computes its own by Welford's update, so that a large mean costs no accuracy.
  float mean[kVec] = {}, squares[kVec] = {}, count = 0.0f;
  if (place.active) {
    for (int64_t p = place.begin(); p < place.last; p += place.rows) {
      float x[kVec];
      group_norm_load<T>(params.x, place.offset(params, p), x);
      count += 1.0f;
      const float share = 1.0f / count;
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const float distance = x[j] - mean[j];
        mean[j] += distance * share;
        squares[j] += distance * (x[j] - mean[j]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kVec; ++j) {
    group_norm_memory[threadIdx.x * kVec + j] = make_float2(mean[j], squares[j]);
  }
  __syncthreads();
  const int width = params.vectors * kVec;
  const int before = static_cast<int>(blockIdx.x % params.columns) * width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kGroupNormThreads) {
    if (before + i >= params.channels) break;
    Spread spread = {0.0, 0.0, 0.0};
    for (int row = 0; row < place.rows; ++row) {
      const float2 found = group_norm_memory[row * width + i];
      spread = merge(spread, {static_cast<double>(place.count(row)), found.x, found.y});
    }
    params.moments[place.slot * params.channels + before + i] =
        make_float2(static_cast<float>(spread.mean), static_cast<float>(spread.squares));
  }
}

__device__ inline double group_norm_value(const bdk_rows& rows, int64_t row, int c, double other) {
  return rows.data == nullptr ? other : load_value(rows.data, row * rows.stride + c, rows.dtype);
}

__device__ inline ChannelAffine group_norm_affine(const GroupNormParams& params, int64_t image,
                                                  int c) {
  return {group_norm_value(params.weight, 0, c, 1.0), group_norm_value(params.bias, 0, c, 0.0),
          group_norm_value(params.scale, image, c, 1.0),
          group_norm_value(params.shift, image, c, 0.0)};
}

// Moments of a group, the same in every thread of a block of kGroupNormJoiners.
__device__ inline Spread group_norm_joined(const GroupNormParams& params, int64_t image, int first,
                                           int width, Spread* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  Spread spread = {0.0, 0.0, 0.0};
  for (int64_t i = thread; i < int64_t{params.chunks} * width; i += kGroupNormJoiners) {
    const int64_t chunk = i / width, begin = chunk * params.chunk;
    const int64_t rest = params.positions - begin;
    const double count = static_cast<double>(rest < params.chunk ? rest : params.chunk);
    const int64_t at = (image * params.chunks + chunk) * params.channels + first + i % width;
    const float2 found = params.moments[at];
    spread = merge(spread, {count, found.x, found.y});
  }
  shared[thread] = spread;
  for (int half = kGroupNormJoiners / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) shared[thread] = merge(shared[thread], shared[thread + half]);
  }
  __syncthreads();
  spread = shared[0];
  __syncthreads();  // the memory is reused
  return spread;
}

// Mean, a and d of a group's channels.
static __global__ void __launch_bounds__(kGroupNormJoiners)
    group_norm_coefficients_kernel(const GroupNormParams params) {
  const int width = params.channels / params.groups;
  const int64_t image = blockIdx.x / params.groups;
  const int first = static_cast<int>(blockIdx.x % params.groups) * width;
  Spread* shared = reinterpret_cast<Spread*>(group_norm_memory);
  const Spread spread = group_norm_joined(params, image, first, width, shared);
  const double rstd = reciprocal_deviation(spread, params.eps);
  float* to = params.coefficients + image * 5 * params.channels;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kGroupNormJoiners) {
    const int c = first + i;
    const ChannelAffine affine = group_norm_affine(params, image, c);
    to[c] = static_cast<float>(spread.mean);
    to[params.channels + c] = channel_slope(affine, rstd);
    to[2 * params.channels + c] = channel_offset(affine);
  }
}

template <class T, int kVec, bool kSilu>
__global__ void __launch_bounds__(kGroupNormThreads)
    group_norm_silu_kernel(const GroupNormParams params) {
  const GroupNormPlace<kVec> place(params);
  if (!place.active) return;
  const GroupNormChannels<kVec> k(params, place.image, place.channel);
  for (int64_t p = place.begin(); p < place.last; p += place.rows) {
    const int64_t offset = place.offset(params, p);
    float x[kVec];
    group_norm_load<T>(params.x, offset, x);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const float z = (x[j] - k.mean[j]) * k.a[j] + k.d[j];
      x[j] = kSilu ? z * group_norm_sigmoid(z) : z;
    }
    group_norm_store<T>(params.y, offset, x);
  }
}

// For every channel, sums over a chunk of the gradient of z, and of that gradient times (x - mean).
template <class T, int kVec, bool kSilu>
__global__ void __launch_bounds__(kGroupNormThreads)
    group_norm_sums_kernel(const GroupNormParams params) {
  const GroupNormPlace<kVec> place(params);
  float grad_z[kVec] = {}, grad_z_x[kVec] = {};
  if (place.active) {
    const GroupNormChannels<kVec> k(params, place.image, place.channel);
    for (int64_t p = place.begin(); p < place.last; p += place.rows) {
      const int64_t offset = place.offset(params, p);
      float x[kVec], grad[kVec];
      group_norm_load<T>(params.x, offset, x);
      group_norm_load<T>(params.grad, offset, grad);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const float centred = x[j] - k.mean[j];
        const float slope = group_norm_grad_z<kSilu>(grad[j], centred * k.a[j] + k.d[j]);
        grad_z[j] += slope;
        grad_z_x[j] += slope * centred;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kVec; ++j) {
    group_norm_memory[threadIdx.x * kVec + j] = make_float2(grad_z[j], grad_z_x[j]);
  }
  __syncthreads();
  const int width = params.vectors * kVec;
  const int before = static_cast<int>(blockIdx.x % params.columns) * width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kGroupNormThreads) {
    if (before + i >= params.channels) break;
    double sum = 0.0, with_x = 0.0;
    for (int row = 0; row < place.rows; ++row) {
      const float2 found = group_norm_memory[row * width + i];
      sum += found.x;
      with_x += found.y;
    }
    params.sums[place.slot * params.channels + before + i] =
        make_float2(static_cast<float>(sum), static_cast<float>(with_x));
  }
}

// Gradients of weight, bias, scale and shift for an image, and coefficients q and r of a group's
// channels, which correct the gradient at every position, since the moments depend on x too.
static __global__ void __launch_bounds__(kGroupNormJoiners)
    group_norm_gradients_kernel(const GroupNormParams params) {
  const int width = params.channels / params.groups;
  const int64_t image = blockIdx.x / params.groups;
  const int first = static_cast<int>(blockIdx.x % params.groups) * width;
  const Spread spread =
      group_norm_joined(params, image, first, width, reinterpret_cast<Spread*>(group_norm_memory));
  const double rstd = reciprocal_deviation(spread, params.eps);
  // kGroupNormLanes threads share a channel's chunks; the first of them adds up.
  double* sums = reinterpret_cast<double*>(group_norm_memory);
  double* with_x = sums + kGroupNormJoiners;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kGroupNormLanes;
  double along_one = 0.0, along_unit = 0.0;
  for (int begin = 0; begin < width; begin += kGroupNormAtOnce) {
    const int c = first + begin + thread / kGroupNormLanes;
    const bool inside = c < first + width;
    sums[thread] = with_x[thread] = 0.0;
    for (int chunk = lane; inside && chunk < params.chunks; chunk += kGroupNormLanes) {
      const float2 found = params.sums[(image * params.chunks + chunk) * params.channels + c];
      sums[thread] += found.x;
      with_x[thread] += found.y;
    }
    __syncthreads();
    if (inside && lane == 0) {
      for (int i = 1; i < kGroupNormLanes; ++i) {
        sums[thread] += sums[thread + i];
        with_x[thread] += with_x[thread + i];
      }
      const ChannelAffine affine = group_norm_affine(params, image, c);
      const ChannelGradients of = channel_gradients(affine, rstd, sums[thread], with_x[thread]);
      along_one += of.along_one;
      along_unit += of.along_unit;
      const int64_t at = image * params.channels + c;
      if (params.grad_weight != nullptr) params.grad_weight[at] = static_cast<float>(of.weight);
      if (params.grad_bias != nullptr) params.grad_bias[at] = static_cast<float>(of.bias);
      if (params.grad_scale != nullptr) params.grad_scale[at] = static_cast<float>(of.scale);
      if (params.grad_shift != nullptr) params.grad_shift[at] = static_cast<float>(of.shift);
    }
    __syncthreads();
  }
  sums[thread] = along_one;
  with_x[thread] = along_unit;
  __syncthreads();
  along_one = along_unit = 0.0;
  for (int i = 0; i < kGroupNormJoiners; i += kGroupNormLanes) {
    along_one += sums[i];
    along_unit += with_x[i];
  }
  const double size = static_cast<double>(params.positions) * width;
  float* to = params.coefficients + image * 5 * params.channels;
  for (int i = thread; i < width; i += kGroupNormJoiners) {
    to[3 * params.channels + first + i] = static_cast<float>(rstd * along_one / size);
    to[4 * params.channels + first + i] = static_cast<float>(rstd * rstd * along_unit / size);
  }
}

template <class T, int kVec, bool kSilu>
__global__ void __launch_bounds__(kGroupNormThreads)
    group_norm_silu_backward_kernel(const GroupNormParams params) {
  const GroupNormPlace<kVec> place(params);
  if (!place.active) return;
  using Channels = GroupNormChannels<kVec>;
  const Channels k(params, place.image, place.channel);
  float q[kVec], r[kVec];
  Channels::load(params, place.image, place.channel, 3, q);
  Channels::load(params, place.image, place.channel, 4, r);
  for (int64_t p = place.begin(); p < place.last; p += place.rows) {
    const int64_t offset = place.offset(params, p);
    float x[kVec], grad[kVec];
    group_norm_load<T>(params.x, offset, x);
    group_norm_load<T>(params.grad, offset, grad);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const float centred = x[j] - k.mean[j];
      const float grad_z = group_norm_grad_z<kSilu>(grad[j], centred * k.a[j] + k.d[j]);
      x[j] = grad_z * k.a[j] - q[j] - centred * r[j];
    }
    group_norm_store<T>(params.grad_x, offset, x);
  }
}

}  // namespace bdk
