// The row functions of gated_residual, one set per instruction set.
#pragma once

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "cpu/rows.h"

namespace bdk {

struct GatedResidualRows {
  void (*forward)(const float* x, const float* h, const float* gate, float* y, int64_t channels);
  // The same past the caches, or null; what reads y in another thread must wait for a fence.
  void (*stream)(const float* x, const float* h, const float* gate, float* y, int64_t channels);
  // The modulated norm z of y.
  void (*norm)(const float* y, const float* scale, const float* shift, const float* weight,
               const float* bias, float* z, int64_t channels, float eps);
  // Gradients of x, h and gate from that of the sum; `more` (or null) is added to the latter.
  void (*backward)(const float* grad, const float* more, const float* h, const float* gate,
                   float* of_x, float* of_h, float* of_gate, int64_t channels);
};

extern const GatedResidualRows kGatedResidualAvx2, kGatedResidualAvx512;

static inline void gated_residual_row(const float* x, const float* h, const float* gate, float* y,
                                      int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) y[c] = x[c] + gate[c] * h[c];
}

#ifdef __AVX2__
static inline void gated_residual_stream_row(const float* x, const float* h, const float* gate,
                                             float* y, int64_t channels) {
  int64_t begin = static_cast<int64_t>(-(reinterpret_cast<uintptr_t>(y) / 4) % 8);
  if (begin > channels) begin = channels;
  gated_residual_row(x, h, gate, y, begin);
  int64_t c = begin;
  for (; c + 8 <= channels; c += 8) {
    const __m256 product_and_sum =
        _mm256_fmadd_ps(_mm256_loadu_ps(gate + c), _mm256_loadu_ps(h + c), _mm256_loadu_ps(x + c));
    _mm256_stream_ps(y + c, product_and_sum);
  }
  gated_residual_row(x + c, h + c, gate + c, y + c, channels - c);
}
#endif

static inline void gated_residual_norm_row(const float* y, const float* scale, const float* shift,
                                           const float* weight, const float* bias, float* z,
                                           int64_t channels, float eps) {
  row_modulate(y, row_moments(y, channels, eps), scale, shift, weight, bias, z, channels);
}

static inline void gated_residual_backward_row(const float* grad, const float* more, const float* h,
                                               const float* gate, float* of_x, float* of_h,
                                               float* of_gate, int64_t channels) {
  if (more == nullptr) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) of_x[c] = grad[c];
  } else {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) of_x[c] = grad[c] + more[c];
  }
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    of_h[c] = of_x[c] * gate[c];
    of_gate[c] = of_x[c] * h[c];
  }
}

}  // namespace bdk
