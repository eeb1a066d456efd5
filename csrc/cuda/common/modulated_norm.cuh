// Device code of adaln_norm and gated_residual: one kernel for the results, one for the gradients.
#pragma once

#include <stdint.h>

#include "cuda/common/row_registers.cuh"

namespace bdk {

struct ModulatedNormParams {
  bdk_rows x, h, gate, scale, shift, weight, bias;
  bdk_rows y, z;  // the sum, and the modulated norm of it (or of x)
  int64_t rows, teams;
  int channels;
  float eps;
};

struct ModulatedNormBackwardParams {
  bdk_rows grad_y, grad_z;  // gradients of the two results
  bdk_rows y, h, gate, scale, weight, bias;
  bdk_rows grad_x, grad_h, grad_gate, grad_scale, grad_shift;
  float* partial;  // [teams, 2, channels]: sums for weight and bias over the rows of a team
  int64_t rows, teams;
  int channels;
  float eps;
};

// The threads that handle a row: row `team_index()` and every teams-th one after it.
__device__ inline int64_t team_index() { return int64_t{blockIdx.x} * blockDim.y + threadIdx.y; }

struct MomentSums {
  float mean[kMaxRowWarps][1];
  float rest[kMaxRowWarps][2];
};

// Takes the mean from x and returns 1 / sqrt(variance + eps). Two passes, so that a large mean
// costs no accuracy; the second one also sees by how much the mean itself was rounded.
template <class Format>
__device__ float center(RowRegisters<Format>& x, int channels, float eps, MomentSums& shared) {
  const float count = static_cast<float>(channels);
  float sum[1] = {};
#pragma unroll
  for (int e = 0; e < kThreadChannels; ++e) sum[0] += x.value[e];
  row_sums(sum, shared.mean);
  const float mean = sum[0] / count;
  float rest[2] = {};
#pragma unroll
  for (int e = 0; e < kThreadChannels; ++e) {
    const bool inside = x.inside(e, channels);
    x.value[e] = inside ? x.value[e] - mean : 0.0f;
    rest[0] += x.value[e];
    rest[1] += x.value[e] * x.value[e];
  }
  row_sums(rest, shared.rest);
  const float missed = rest[0] / count;
#pragma unroll
  for (int e = 0; e < kThreadChannels; ++e) x.value[e] -= missed;
  return 1.0f / sqrtf(rest[1] / count - missed * missed + eps);
}

// kSum: y = x + gate h, as it is stored. kNorm: z = (weight LN(y) + bias) (1 + scale) + shift,
// where y is x without kSum.
template <class Format, bool kSum, bool kNorm>
__global__ void __launch_bounds__(kMaxRowThreads)
    modulated_norm_kernel(const ModulatedNormParams params) {
  using Row = RowRegisters<Format>;
  __shared__ MomentSums shared;
  const int channels = params.channels;
  for (int64_t row = team_index(); row < params.rows; row += params.teams) {
    Row x, h, gate, scale, shift;
    x.load(params.x, row, channels);
    if constexpr (kSum) {
      h.load(params.h, row, channels);
      gate.load(params.gate, row, channels);
    }
    if constexpr (kNorm) {  // early: they arrive while the moments are computed
      scale.load(params.scale, row, channels);
      shift.load(params.shift, row, channels);
    }
    if constexpr (kSum) {
#pragma unroll
      for (int e = 0; e < kThreadChannels; ++e) x.value[e] += gate.value[e] * h.value[e];
      x.store(params.y, row, channels);
    }
    if constexpr (kNorm) {
      if constexpr (kSum) x.round(params.y.dtype);
      const float rstd = center(x, channels, params.eps, shared);
#pragma unroll
      for (int k = 0; k < kPackets; ++k) {
        if (!Row::inside(k * kWidth, channels)) continue;
        float weight[kWidth], bias[kWidth];
        load_affine<Format>(params.weight, Row::channel(k), channels, 1.0f, weight);
        load_affine<Format>(params.bias, Row::channel(k), channels, 0.0f, bias);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const int e = k * kWidth + j;
          const float n = x.value[e] * rstd * weight[j] + bias[j];
          x.value[e] = n * (1.0f + scale.value[e]) + shift.value[e];
        }
      }
      x.store(params.z, row, channels);
    }
  }
}

// With unit = (y - mean) rstd and n = weight unit + bias, the gradient of y through the norm is the
// gradient of unit minus its projections on 1 and on unit, since the moments depend on y too.
template <class Format, bool kSum, bool kNorm, bool kAffine>
__global__ void __launch_bounds__(kMaxRowThreads)
    modulated_norm_backward_kernel(const ModulatedNormBackwardParams params) {
  using Row = RowRegisters<Format>;
  __shared__ MomentSums shared;
  __shared__ float along[kMaxRowWarps][2];
  const int channels = params.channels;
  const int64_t team = team_index();
  if (team >= params.teams) return;
  // Weight and bias and the sums for them: separate for each thread, so that no barrier is needed,
  // and in shared memory, since the row takes the registers.
  extern __shared__ float affine[];
  float* weight = affine + (threadIdx.y * blockDim.x + threadIdx.x) * kThreadAffine;
  float* bias = weight + kThreadChannels;
  float* grad_weight = bias + kThreadChannels;
  float* grad_bias = grad_weight + kThreadChannels;
  if constexpr (kAffine) {
#pragma unroll
    for (int k = 0; k < kPackets; ++k) {
      if (!Row::inside(k * kWidth, channels)) continue;
      float weights[kWidth], biases[kWidth];
      load_affine<Format>(params.weight, Row::channel(k), channels, 1.0f, weights);
      load_affine<Format>(params.bias, Row::channel(k), channels, 0.0f, biases);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const int at = k * kWidth + j;
        weight[at] = weights[j];
        bias[at] = biases[j];
        grad_weight[at] = grad_bias[at] = 0.0f;
      }
    }
  }
  for (int64_t row = team; row < params.rows; row += params.teams) {
    Row grad_x;
    if constexpr (kNorm) {
      Row unit, grad_scale;
      unit.load(params.y, row, channels);
      grad_x.load(params.grad_z, row, channels);
      grad_scale.load(params.scale, row, channels);
      const float rstd = center(unit, channels, params.eps, shared);
      grad_x.store(params.grad_shift, row, channels);
      float sum[2] = {};  // of the gradient of unit: along 1, along unit
#pragma unroll
      for (int e = 0; e < kThreadChannels; ++e) {
        if (kAffine && !Row::inside(e, channels)) continue;
        const float grad = grad_x.value[e];
        const float grad_n = grad * (1.0f + grad_scale.value[e]);
        unit.value[e] *= rstd;
        grad_x.value[e] = grad_n;
        float n = unit.value[e];
        if constexpr (kAffine) {
          grad_weight[e] += grad_n * unit.value[e];
          grad_bias[e] += grad_n;
          n = n * weight[e] + bias[e];
          grad_x.value[e] *= weight[e];
        }
        grad_scale.value[e] = grad * n;
        sum[0] += grad_x.value[e];
        sum[1] += grad_x.value[e] * unit.value[e];
      }
      grad_scale.store(params.grad_scale, row, channels);
      row_sums(sum, along);
      const float count = static_cast<float>(channels);
      sum[0] /= count;
      sum[1] /= count;
#pragma unroll
      for (int e = 0; e < kThreadChannels; ++e) {
        grad_x.value[e] = rstd * (grad_x.value[e] - sum[0] - unit.value[e] * sum[1]);
      }
    }
    if constexpr (kSum) {
      Row other, grad_gate;
      other.load(params.grad_y, row, channels);
#pragma unroll
      for (int e = 0; e < kThreadChannels; ++e) {
        grad_x.value[e] = kNorm ? grad_x.value[e] + other.value[e] : other.value[e];
      }
      other.load(params.gate, row, channels);
      grad_gate.load(params.h, row, channels);
#pragma unroll
      for (int e = 0; e < kThreadChannels; ++e) {
        other.value[e] *= grad_x.value[e];
        grad_gate.value[e] *= grad_x.value[e];
      }
      other.store(params.grad_h, row, channels);
      grad_gate.store(params.grad_gate, row, channels);
    }
    grad_x.store(params.grad_x, row, channels);
  }
  if constexpr (kAffine) {
    float* partial = params.partial + team * 2 * channels;
#pragma unroll
    for (int k = 0; k < kPackets; ++k) {
      if (!Row::inside(k * kWidth, channels)) continue;
      float weights[kWidth], biases[kWidth];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const int at = k * kWidth + j;
        weights[j] = grad_weight[at];
        biases[j] = grad_bias[at];
      }
      const int channel = Row::channel(k);
      Format::store(partial + channel, channels - channel, weights);
      Format::store(partial + channels + channel, channels - channel, biases);
    }
  }
}

// Second stage of the gradients of weight and bias, without atomics: lane l of a channel sums teams
// l, l + kAffineLanes, ..., then the lanes are summed in order. Block y is weight (0) or bias (1).
static __global__ void __launch_bounds__(kAffineChannels* kAffineLanes)
    affine_sum_kernel(const float* partial, const bdk_rows grad_weight, const bdk_rows grad_bias,
                      const int64_t teams, const int channels) {
  __shared__ float lanes[kAffineLanes][kAffineChannels];
  const bdk_rows to = blockIdx.y == 0 ? grad_weight : grad_bias;
  if (to.data == nullptr) return;
  const int channel = static_cast<int>(blockIdx.x * kAffineChannels + threadIdx.x);
  float sum = 0.0f;
  if (channel < channels) {
    const float* from = partial + int64_t{blockIdx.y} * channels + channel;
#pragma unroll 8
    for (int64_t team = threadIdx.y; team < teams; team += kAffineLanes) {
      sum += from[team * 2 * channels];
    }
  }
  lanes[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || channel >= channels) return;
#pragma unroll
  for (int lane = 1; lane < kAffineLanes; ++lane) sum += lanes[lane][threadIdx.x];
  with_type(to.dtype, [&](auto type) {
    using T = decltype(type);
    static_cast<T*>(to.data)[channel] = narrow<T>(sum);
  });
}

}  // namespace bdk
