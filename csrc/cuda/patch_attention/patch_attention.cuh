// Device code of patch_attention in float32, which tensor cores do not have: a block takes one head
// of one patch, a warp 16 of its queries. q, k and v are read once, into shared memory, whose rows
// are padded so that neither the rows of keys nor those of queries share banks.
#pragma once

#include <math.h>

#include "cuda/common/mma.cuh"
#include "cuda/patch_attention/patch_attention_config.h"

namespace bdk {

struct PatchParams {
  const float* qkv;  // [rows, patch, 3, heads, head_dim], a token every `stride`
  float* out;        // [rows, patch, heads, head_dim]
  int64_t stride;
  int patch, heads, head_dim;
  float scale;  // times log2(e)
};

__device__ inline float4 load_four(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}

// a b. Adding products to a sum four at a time halves the rounding error of one at a time.
__device__ inline float dot_four(float4 a, float4 b) {
  return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, a.w * b.w)));
}

// y += a x.
__device__ inline void add_scaled(float a, float4 x, float4& y) {
  y.x = fmaf(a, x.x, y.x);
  y.y = fmaf(a, x.y, y.y);
  y.z = fmaf(a, x.z, y.z);
  y.w = fmaf(a, x.w, y.w);
}

// q, k or v of one head for all tokens; zeros past the last token and the last channel.
template <int kHeadDim, int kWarps>
__device__ inline void copy_third(float* third, const float* from, const PatchParams& params) {
  constexpr int kChunks = kHeadDim / 4;
#pragma unroll 4
  for (int i = threadIdx.x; i < kPatchQueries * kWarps * kChunks; i += 32 * kWarps) {
    const int token = i / kChunks;
    const int channel = i % kChunks * 4;
    const bool inside = token < params.patch && channel < params.head_dim;
    const float* source = inside ? from + token * params.stride + channel : from;
    copy_async(third + token * (kHeadDim + kPatchPad) + channel, source, inside);
  }
}

// Scores of a warp's queries. Lane 4 i + j has those of queries i and i + 8 with keys 4 n + j.
template <int kHeadDim, int kWarps>
__device__ inline void patch_scores(const float* q, const float* k,
                                    float (&scores)[2][4 * kWarps]) {
  constexpr int kRow = kHeadDim + kPatchPad;
  const int lane = threadIdx.x % 32;
  q += lane / 4 * kRow;
  k += lane % 4 * kRow;
#pragma unroll 2
  for (int d = 0; d < kHeadDim; d += 4) {
    const float4 first = load_four(q + d);
    const float4 second = load_four(q + 8 * kRow + d);
#pragma unroll
    for (int n = 0; n < 4 * kWarps; ++n) {
      const float4 key = load_four(k + 4 * n * kRow + d);
      scores[0][n] += dot_four(first, key);
      scores[1][n] += dot_four(second, key);
    }
  }
}

// Turns scores into weights, 2^(score - max of the row), and returns the sums of the rows.
template <int kWarps>
__device__ inline float2 patch_weights(float (&scores)[2][4 * kWarps], const PatchParams& params) {
  float sums[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float highest = -INFINITY;
#pragma unroll
    for (int n = 0; n < 4 * kWarps; ++n) {
      const bool real = 4 * n + static_cast<int>(threadIdx.x % 4) < params.patch;
      scores[half][n] = real ? scores[half][n] * params.scale : -INFINITY;
      highest = fmaxf(highest, scores[half][n]);
    }
    highest = quad_max(highest);
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < 4 * kWarps; ++n) {
      scores[half][n] = exp2f(scores[half][n] - highest);
      sum += scores[half][n];
    }
    sums[half] = quad_sum(sum);
  }
  return make_float2(sums[0], sums[1]);
}

template <int kHeadDim, int kWarps>
__global__ void __launch_bounds__(32 * kWarps) patch_attention_kernel(PatchParams params) {
  constexpr int kRow = kHeadDim + kPatchPad;
  constexpr int kThird = kPatchQueries * kWarps * kRow;
  // Adjacent lanes have the channels of a token, four each; with fewer than 128 channels the lanes
  // form groups with different rows.
  constexpr int kGroup = kHeadDim / 4;
  constexpr int kRows = kPatchQueries * kGroup / 32;
  static_assert(kHeadDim + kPatchPad >= kPatchQueries * kWarps, "weights lie where q lay");

  extern __shared__ uint4 patch_memory[];
  float* q = reinterpret_cast<float*>(patch_memory);
  float* k = q + kThird;
  float* v = k + kThird;
  const int channels = params.heads * params.head_dim;
  const int head_channel = static_cast<int>(blockIdx.x % params.heads) * params.head_dim;
  const int64_t token0 = static_cast<int64_t>(blockIdx.x / params.heads) * params.patch;
  const float* from = params.qkv + token0 * params.stride + head_channel;
  copy_third<kHeadDim, kWarps>(q, from, params);
  copy_third<kHeadDim, kWarps>(k, from + channels, params);
  commit_copies();
  copy_third<kHeadDim, kWarps>(v, from + 2 * int64_t{channels}, params);
  commit_copies();

  const int lane = threadIdx.x % 32;
  const int query0 = static_cast<int>(threadIdx.x / 32) * kPatchQueries;
  q += query0 * kRow;
  wait_for_copies<1>();
  __syncthreads();
  float scores[2][4 * kWarps] = {};
  patch_scores<kHeadDim, kWarps>(q, k, scores);
  const float2 sums = patch_weights<kWarps>(scores, params);
  __syncwarp();  // all have read q
#pragma unroll
  for (int n = 0; n < 4 * kWarps; ++n) {
    q[lane / 4 * kRow + 4 * n + lane % 4] = scores[0][n];
    q[(lane / 4 + 8) * kRow + 4 * n + lane % 4] = scores[1][n];
  }
  wait_for_copies<0>();
  __syncthreads();

  const int row0 = lane / kGroup * kRows;
  const int channel = lane % kGroup * 4;
  const float* weights = q + row0 * kRow;
  float4 rows[kRows] = {};
  for (int key = 0; key < params.patch; key += 4) {  // behind the last, weights and v are 0
    float4 values[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = load_four(v + (key + i) * kRow + channel);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float4 weight = load_four(weights + r * kRow + key);
      add_scaled(weight.x, values[0], rows[r]);
      add_scaled(weight.y, values[1], rows[r]);
      add_scaled(weight.z, values[2], rows[r]);
      add_scaled(weight.w, values[3], rows[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = row0 + r;  // its sum is in lane 4 (row % 8), in the second half from row 8 on
    const float low = __shfl_sync(0xFFFFFFFFu, sums.x, row % 8 * 4);
    const float high = __shfl_sync(0xFFFFFFFFu, sums.y, row % 8 * 4);
    const float factor = 1.0f / (row < 8 ? low : high);
    const int query = query0 + row;
    if (query >= params.patch || channel >= params.head_dim) continue;
    float* out = params.out + (token0 + query) * channels + head_channel + channel;
    *reinterpret_cast<float4*>(out) =
        make_float4(rows[r].x * factor, rows[r].y * factor, rows[r].z * factor, rows[r].w * factor);
  }
}

}  // namespace bdk
