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
                      const float* bias, float* of_x, float* of_scale, float* of_shift,
                      int64_t channels, float eps);
  // Adds a row's part of the gradients of weight and bias.
  void (*add_affine)(const float* grad, const float* x, Moments moments, const float* scale,
                     float* of_weight, float* of_bias, int64_t channels);
};

extern const AdalnNormRows kAdalnNormAvx2, kAdalnNormAvx512;

static inline void adaln_norm_row(const float* x, const float* scale, const float* shift,
                                  const float* weight, const float* bias, float* y,
                                  int64_t channels, float eps) {
  row_modulate(x, row_moments(x, channels, eps), scale, shift, weight, bias, y, channels);
}

// With unit = (x - mean) rstd the gradient of x is that of unit less what it has along 1 and along
// unit, since the moments depend on x too.
static inline Moments adaln_norm_backward_row(const float* grad, const float* x, const float* scale,
                                              const float* weight, const float* bias, float* of_x,
                                              float* of_scale, float* of_shift, int64_t channels,
                                              float eps) {
  const Moments m = row_moments(x, channels, eps);
  float along_one = 0.0f, along_unit = 0.0f;
#pragma omp simd reduction(+ : along_one, along_unit)
  for (int64_t c = 0; c < channels; ++c) {
    const float unit = (x[c] - m.mean) * m.rstd;
    const float w = weight != nullptr ? weight[c] : 1.0f;
    const float b = bias != nullptr ? bias[c] : 0.0f;
    const float of_unit = grad[c] * (1.0f + scale[c]) * w;
    of_scale[c] = grad[c] * (unit * w + b);
    of_shift[c] = grad[c];
    of_x[c] = of_unit;
    along_one += of_unit;
    along_unit += of_unit * unit;
  }
  along_one /= static_cast<float>(channels);
  along_unit /= static_cast<float>(channels);
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const float unit = (x[c] - m.mean) * m.rstd;
    of_x[c] = m.rstd * (of_x[c] - along_one - unit * along_unit);
  }
  return m;
}

// In double: the sums of few rows would else carry the roundings of every factor.
static inline void adaln_norm_add_affine(const float* grad, const float* x, Moments m,
                                         const float* scale, float* of_weight, float* of_bias,
                                         int64_t channels) {
  const double mean = static_cast<double>(m.mean), rstd = static_cast<double>(m.rstd);
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const double of_n = static_cast<double>(grad[c]) * (1.0 + static_cast<double>(scale[c]));
    const double unit = (static_cast<double>(x[c]) - mean) * rstd;
    of_weight[c] = static_cast<float>(static_cast<double>(of_weight[c]) + of_n * unit);
    of_bias[c] = static_cast<float>(static_cast<double>(of_bias[c]) + of_n);
  }
}

}  // namespace bdk
