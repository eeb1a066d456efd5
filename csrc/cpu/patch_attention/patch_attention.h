// Attention among the tokens of one patch and one head, float32, one pair of functions per
// instruction set.
#pragma once

#include "cpu/common/attention_tiles.h"
#include "cpu/common/rows.h"

namespace bdk {

constexpr int kMaxPatch = 64;
constexpr int kMaxHeadDim = kMaxChannels;

struct PatchHead {
  Matrix q, k, v;  // [patch, head_dim]
  int patch, head_dim;
};

struct PatchAttentionLoops {
  void (*forward)(const PatchHead& head, float* out, int64_t out_stride);
  void (*backward)(const PatchHead& head, Matrix grad, float* grad_q, float* grad_k, float* grad_v,
                   int64_t out_stride);
};

extern const PatchAttentionLoops kPatchAttentionAvx2, kPatchAttentionAvx512;

namespace {  // compiled anew for each instruction set

struct PatchBuffers {
  alignas(64) float factor[kMaxPatch * kMaxHeadDim];
  alignas(64) float result[kMaxPatch * kMaxHeadDim];
  alignas(64) float weights[kMaxPatch * kMaxPatch];
  alignas(64) float grad_weights[kMaxPatch * kMaxPatch];
};

// The weights [patch, patch] of every token.
inline void softmax(const PatchHead& head, float* weights) {
  const int patch = head.patch;
  const float factor = 1.0f / sqrtf(static_cast<float>(head.head_dim));
  dots(head.q, patch, head.k, patch, head.head_dim, factor, weights);
  for (int i = 0; i < patch; ++i) {
    float* p = weights + i * patch;
    float row_max = p[0];
#pragma omp simd reduction(max : row_max)
    for (int j = 0; j < patch; ++j) row_max = p[j] > row_max ? p[j] : row_max;
#pragma omp simd
    for (int j = 0; j < patch; ++j) p[j] -= row_max;
  }
#pragma omp simd
  for (int j = 0; j < patch * patch; ++j) weights[j] = exp_approximate(weights[j]);
  for (int i = 0; i < patch; ++i) {
    float* p = weights + i * patch;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < patch; ++j) sum += p[j];
    const float share = 1.0f / sum;
#pragma omp simd
    for (int j = 0; j < patch; ++j) p[j] *= share;
  }
}

// to [patch, head_dim] = factor times the sum over k of a(k, token) b[k, channel].
inline void tokens(const float* a, int64_t a_step, int64_t a_row, Matrix b, float factor,
                   const PatchHead& head, PatchBuffers& buffers, float* to, int64_t to_stride) {
  const int patch = head.patch, width = padded(head.head_dim);
  b = close_together(b, patch, head.head_dim, buffers.factor);
  if (width == head.head_dim) {
    product(a, a_step, a_row, b, patch, patch, width, factor, to, to_stride);
    return;
  }
  product(a, a_step, a_row, b, patch, patch, width, factor, buffers.result, width);
  for (int t = 0; t < patch; ++t) {
    memcpy(to + t * to_stride, buffers.result + t * width, sizeof(float) * head.head_dim);
  }
}

inline void patch_attention_forward(const PatchHead& head, float* out, int64_t out_stride) {
  PatchBuffers buffers;
  softmax(head, buffers.weights);
  tokens(buffers.weights, 1, head.patch, head.v, 1.0f, head, buffers, out, out_stride);
}

inline void patch_attention_backward(const PatchHead& head, Matrix grad, float* grad_q,
                                     float* grad_k, float* grad_v, int64_t out_stride) {
  PatchBuffers buffers;
  softmax(head, buffers.weights);
  const int patch = head.patch;
  tokens(buffers.weights, patch, 1, grad, 1.0f, head, buffers, grad_v, out_stride);
  float* grad_scores = buffers.grad_weights;
  dots(grad, patch, head.v, patch, head.head_dim, 1.0f, grad_scores);
  // Softmax: grad_score = p (grad_p - sum of p grad_p), row by row.
  for (int i = 0; i < patch; ++i) {
    const float* p = buffers.weights + i * patch;
    float* row = grad_scores + i * patch;
    float mean = 0.0f;
#pragma omp simd reduction(+ : mean)
    for (int j = 0; j < patch; ++j) mean += p[j] * row[j];
#pragma omp simd
    for (int j = 0; j < patch; ++j) row[j] = p[j] * (row[j] - mean);
  }
  const float factor = 1.0f / sqrtf(static_cast<float>(head.head_dim));
  tokens(grad_scores, 1, patch, head.k, factor, head, buffers, grad_q, out_stride);
  tokens(grad_scores, patch, 1, head.q, factor, head, buffers, grad_k, out_stride);
}

}  // namespace
}  // namespace bdk
