// Attention among the tokens of one patch and one head, float32, one pair of functions per
// instruction set.
//
// Everything is a product of a tall and a flat matrix of at most 64 x 128, c[m, n] = sum over k of
// a(k, m) b[k, n], with vectors along n; only the second factor of a product with q, k or v across
// its channels is transposed first.
#pragma once

#include "cpu/rows.h"

namespace bdk {

constexpr int kMostPatch = 64;
constexpr int kMostHeadDim = 128;
constexpr int kPad = 16;  // columns come in multiples of this many

struct PatchHead {
  const float *q, *k, *v;  // [patch, head_dim], one token every `stride`
  int64_t stride;
  int patch, head_dim;
};

struct PatchAttentionLoops {
  void (*forward)(const PatchHead& head, float* out, int64_t out_stride);
  void (*backward)(const PatchHead& head, const float* grad, int64_t grad_stride, float* of_q,
                   float* of_k, float* of_v, int64_t of_stride);
};

extern const PatchAttentionLoops kPatchAttentionAvx2, kPatchAttentionAvx512;

namespace {  // the vectors differ between the files that include this

#ifdef __AVX512F__
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kVectors = kPad / kLanes;
using Vector = float __attribute__((vector_size(4 * kLanes)));

// Rows of floats, one every `stride`.
struct Matrix {
  const float* at;
  int64_t stride;
};

inline int padded(int columns) { return (columns + kPad - 1) / kPad * kPad; }

// kRows rows of c, kPad columns.
template <int kRows>
inline void product_block(const float* a, int64_t a_step, int64_t a_row, Matrix b, int depth,
                          float factor, float* c, int64_t c_stride) {
  Vector sum[kRows][kVectors] = {};
  for (int k = 0; k < depth; ++k) {
    Vector v[kVectors];
    memcpy(v, b.at + k * b.stride, sizeof v);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) sum[r][i] += a[k * a_step + r * a_row] * v[i];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) sum[r][i] *= factor;
    memcpy(c + r * c_stride, sum[r], sizeof sum[r]);
  }
}

// c [rows, columns] = factor times the sum over k of a(k, row) b[k, column], where a(k, row) is
// a[k * a_step + row * a_row]; `columns` is a multiple of kPad.
inline void product(const float* a, int64_t a_step, int64_t a_row, Matrix b, int depth, int rows,
                    int columns, float factor, float* c, int64_t c_stride) {
  constexpr int kRows = kLanes == 4 ? 2 : kLanes == 8 ? 4 : 8;
  for (int column = 0; column < columns; column += kPad) {
    const Matrix from{b.at + column, b.stride};
    int row = 0;
    for (; row + kRows <= rows; row += kRows) {
      product_block<kRows>(a + row * a_row, a_step, a_row, from, depth, factor,
                           c + row * c_stride + column, c_stride);
    }
    for (; row < rows; ++row) {
      product_block<1>(a + row * a_row, a_step, a_row, from, depth, factor,
                       c + row * c_stride + column, c_stride);
    }
  }
}

// [patch, head_dim] with columns to a multiple of kPad: the matrix itself where it has them.
inline Matrix with_padding(Matrix m, int patch, int head_dim, float* buffer) {
  const int width = padded(head_dim);
  if (width == head_dim) return m;
  for (int t = 0; t < patch; ++t) {
    for (int d = 0; d < width; ++d)
      buffer[t * width + d] = d < head_dim ? m.at[t * m.stride + d] : 0;
  }
  return {buffer, width};
}

// [head_dim, patch], padded with zeros.
inline Matrix transposed(Matrix m, int patch, int head_dim, float* buffer) {
  const int width = padded(patch);
  for (int d = 0; d < head_dim; ++d) {
    for (int t = 0; t < width; ++t) buffer[d * width + t] = t < patch ? m.at[t * m.stride + d] : 0;
  }
  return {buffer, width};
}

struct PatchBuffers {
  alignas(64) float transposed[kMostHeadDim * kMostPatch];
  alignas(64) float padded[kMostPatch * kMostHeadDim];
  alignas(64) float result[kMostPatch * kMostHeadDim];
  alignas(64) float weights[kMostPatch * kMostPatch];
  alignas(64) float of_weights[kMostPatch * kMostPatch];
};

// The weights [patch, padded(patch)] of every token.
inline void softmax(const PatchHead& head, PatchBuffers& buffers) {
  const int patch = head.patch, width = padded(patch);
  const Matrix k = transposed({head.k, head.stride}, patch, head.head_dim, buffers.transposed);
  const float factor = 1.0f / sqrtf(static_cast<float>(head.head_dim));
  product(head.q, 1, head.stride, k, head.head_dim, patch, width, factor, buffers.weights, width);
  for (int i = 0; i < patch; ++i) {
    float* p = buffers.weights + i * width;
    float most = p[0];
#pragma omp simd reduction(max : most)
    for (int j = 0; j < patch; ++j) most = p[j] > most ? p[j] : most;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < patch; ++j) {
      p[j] = exp_approximate(p[j] - most);
      sum += p[j];
    }
    const float share = 1.0f / sum;
#pragma omp simd
    for (int j = 0; j < patch; ++j) p[j] *= share;
  }
}

// to [patch, head_dim] = factor times the sum over k of a(k, token) b[k, channel].
inline void tokens(const float* a, int64_t a_step, int64_t a_row, Matrix b, float factor,
                   const PatchHead& head, PatchBuffers& buffers, float* to, int64_t to_stride) {
  const int patch = head.patch, width = padded(head.head_dim);
  b = with_padding(b, patch, head.head_dim, buffers.padded);
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
  softmax(head, buffers);
  tokens(buffers.weights, 1, padded(head.patch), {head.v, head.stride}, 1.0f, head, buffers, out,
         out_stride);
}

inline void patch_attention_backward(const PatchHead& head, const float* grad, int64_t grad_stride,
                                     float* of_q, float* of_k, float* of_v, int64_t of_stride) {
  PatchBuffers buffers;
  softmax(head, buffers);
  const int patch = head.patch, width = padded(patch);
  tokens(buffers.weights, width, 1, {grad, grad_stride}, 1.0f, head, buffers, of_v, of_stride);
  const Matrix v = transposed({head.v, head.stride}, patch, head.head_dim, buffers.transposed);
  float* of_scores = buffers.of_weights;
  product(grad, 1, grad_stride, v, head.head_dim, patch, width, 1.0f, of_scores, width);
  // Softmax: each row of scores moves by what its gradient has above the row's mean under p.
  for (int i = 0; i < patch; ++i) {
    const float* p = buffers.weights + i * width;
    float* row = of_scores + i * width;
    float mean = 0.0f;
#pragma omp simd reduction(+ : mean)
    for (int j = 0; j < patch; ++j) mean += p[j] * row[j];
#pragma omp simd
    for (int j = 0; j < patch; ++j) row[j] = p[j] * (row[j] - mean);
  }
  const float factor = 1.0f / sqrtf(static_cast<float>(head.head_dim));
  tokens(of_scores, 1, width, {head.k, head.stride}, factor, head, buffers, of_q, of_stride);
  tokens(of_scores, width, 1, {head.q, head.stride}, factor, head, buffers, of_k, of_stride);
}

}  // namespace
}  // namespace bdk
