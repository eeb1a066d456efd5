// The row functions of adaln_norm, one set per instruction set.
#pragma once

#include "cpu/common/half_rows.h"

namespace bdk {

struct AdalnNormRows {
  void (*forward)(const float* x, const float* scale, const float* shift, const float* weight,
                  const float* bias, float* y, int64_t channels, float eps);
  // The same of halves, with a buffer of `channels` values; weight and bias are both given or null.
  void (*float16)(const uint16_t* x, const uint16_t* scale, const uint16_t* shift,
                  const float* weight, const float* bias, uint16_t* y, float* buffer,
                  int64_t channels, float eps);
  void (*bfloat16)(const uint16_t* x, const uint16_t* scale, const uint16_t* shift,
                   const float* weight, const float* bias, uint16_t* y, float* buffer,
                   int64_t channels, float eps);
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

template <class Half>
static inline void adaln_norm_halves(const uint16_t* x, const uint16_t* scale,
                                     const uint16_t* shift, const float* weight, const float* bias,
                                     uint16_t* y, float* buffer, int64_t channels, float eps) {
  const Moments m = moments_of(WidenedRow<Half>{as_halves<Half>(x), buffer}, channels, eps);
  modulate_halves(buffer, m, as_halves<Half>(scale), as_halves<Half>(shift), weight, bias,
                  as_halves<Half>(y), channels);
}

// The weight and bias of a row: both, or one of the two. Asking in the loop would keep it from
// being vectorised.
struct NormPair {
  const float *weight, *bias;
  float w(int64_t c) const { return weight[c]; }
  float b(int64_t c) const { return bias[c]; }
};
struct NormNone {
  float w(int64_t) const { return 1.0f; }
  float b(int64_t) const { return 0.0f; }
};
struct NormOne {
  const float *weight, *bias;
  float w(int64_t c) const { return weight != nullptr ? weight[c] : 1.0f; }
  float b(int64_t c) const { return bias != nullptr ? bias[c] : 0.0f; }
};

// With unit = (x - mean) rstd, the gradient of x is the gradient of unit minus its projections on 1
// and on unit, since the moments depend on x too.
template <class Affine>
static inline Moments adaln_norm_backward_with(const float* grad, const float* x,
                                               const float* scale, Affine affine, float* grad_x,
                                               float* grad_scale, float* grad_shift,
                                               int64_t channels, float eps) {
  const Moments m = row_moments(x, channels, eps);
  double along_one_sum = 0.0, along_unit_sum = 0.0;
#pragma omp simd reduction(+ : along_one_sum, along_unit_sum)
  for (int64_t c = 0; c < channels; ++c) {
    const float unit = (x[c] - m.mean) * m.rstd;
    const float grad_unit = grad[c] * (1.0f + scale[c]) * affine.w(c);
    grad_scale[c] = grad[c] * (unit * affine.w(c) + affine.b(c));
    grad_shift[c] = grad[c];
    grad_x[c] = grad_unit;
    along_one_sum += static_cast<double>(grad_unit);
    along_unit_sum += static_cast<double>(grad_unit * unit);
  }
  const auto count = static_cast<double>(channels);
  const float along_one = static_cast<float>(along_one_sum / count);
  const float along_unit = static_cast<float>(along_unit_sum / count);
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const float unit = (x[c] - m.mean) * m.rstd;
    grad_x[c] = m.rstd * (grad_x[c] - along_one - unit * along_unit);
  }
  return m;
}

static inline Moments adaln_norm_backward_row(const float* grad, const float* x, const float* scale,
                                              const float* weight, const float* bias, float* grad_x,
                                              float* grad_scale, float* grad_shift,
                                              int64_t channels, float eps) {
  const auto run = [=](auto affine) {
    return adaln_norm_backward_with(grad, x, scale, affine, grad_x, grad_scale, grad_shift,
                                    channels, eps);
  };
  if (weight == nullptr && bias == nullptr) return run(NormNone{});
  if (weight != nullptr && bias != nullptr) return run(NormPair{weight, bias});
  return run(NormOne{weight, bias});  // rare: no known model has only one of the two
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

namespace {
constexpr AdalnNormRows kAdalnNormHere = {adaln_norm_row, adaln_norm_halves<Float16>,
                                          adaln_norm_halves<Bfloat16>, adaln_norm_backward_row,
                                          adaln_norm_add_affine};
}  // namespace
}  // namespace bdk
