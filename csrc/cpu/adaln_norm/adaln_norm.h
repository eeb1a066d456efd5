// The row functions of adaln_norm, one set per instruction set.
#pragma once

#include "cpu/common/rows.h"

namespace bdk {

struct AdalnNormRows {
  void (*forward)(const float* x, const float* scale, const float* shift, const float* weight,
                  const float* bias, float* y, int64_t channels, float eps);
  // Gradients of a row's x, scale and shift, and the row's moments, which the gradients of weight
  // and bias need.
  Moments (*backward)(const float* grad, const float* x, const float* scale, const float* weight,
                      const float* bias, float* grad_x, float* grad_scale, float* grad_shift,
                      int64_t channels, float eps);
  // Adds a row's part of the gradients of weight and bias.
  void (*add_affine)(const float* grad, const float* x, Moments moments, const float* scale,
                     float* grad_weight, float* grad_bias, int64_t channels);
};

extern const AdalnNormRows kAdalnNormAvx2, kAdalnNormAvx512;

static inline void adaln_norm_row(const float* x, const float* scale, const float* shift,
                                  const float* weight, const float* bias, float* y,
                                  int64_t channels, float eps) {
  row_modulate(x, row_moments(x, channels, eps), scale, shift, weight, bias, y, channels);
}

// With unit = (x - mean) rstd, the gradient of x is the gradient of unit minus its projections on 1
// and on unit, since the moments depend on x too.
static inline Moments adaln_norm_backward_row(const float* grad, const float* x, const float* scale,
                                              const float* weight, const float* bias, float* grad_x,
                                              float* grad_scale, float* grad_shift,
                                              int64_t channels, float eps) {
  const Moments m = row_moments(x, channels, eps);
  float along_one = 0.0f, along_unit = 0.0f;
#pragma omp simd reduction(+ : along_one, along_unit)
  for (int64_t c = 0; c < channels; ++c) {
    const float unit = (x[c] - m.mean) * m.rstd;
    const float w = weight != nullptr ? weight[c] : 1.0f;
    const float b = bias != nullptr ? bias[c] : 0.0f;
    const float grad_unit = grad[c] * (1.0f + scale[c]) * w;
    grad_scale[c] = grad[c] * (unit * w + b);
    grad_shift[c] = grad[c];
    grad_x[c] = grad_unit;
    along_one += grad_unit;
    along_unit += grad_unit * unit;
  }
  along_one /= static_cast<float>(channels);
  along_unit /= static_cast<float>(channels);
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const float unit = (x[c] - m.mean) * m.rstd;
    grad_x[c] = m.rstd * (grad_x[c] - along_one - unit * along_unit);
  }
  return m;
}

// In double: otherwise the sums of a few rows would carry the rounding errors of every factor.
static inline void adaln_norm_add_affine(const float* grad, const float* x, Moments m,
                                         const float* scale, float* grad_weight, float* grad_bias,
                                         int64_t channels) {
  const double mean = static_cast<double>(m.mean), rstd = static_cast<double>(m.rstd);
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const double grad_n = static_cast<double>(grad[c]) * (1.0 + static_cast<double>(scale[c]));
    const double unit = (static_cast<double>(x[c]) - mean) * rstd;
    grad_weight[c] = static_cast<float>(static_cast<double>(grad_weight[c]) + grad_n * unit);
    grad_bias[c] = static_cast<float>(static_cast<double>(grad_bias[c]) + grad_n);
  }
}

}  // namespace bdk
