// The row functions of gated_residual, one set per instruction set.
#pragma once

#include "cpu/common/half_rows.h"

namespace bdk {

struct GatedResidualRows {
  void (*forward)(const float* x, const float* h, const float* gate, float* y, int64_t channels);
  // The same with non-temporal stores (see write_row), or null.
  void (*stream)(const float* x, const float* h, const float* gate, float* y, int64_t channels);
  // The same of halves.
  void (*float16)(const uint16_t* x, const uint16_t* h, const uint16_t* gate, uint16_t* y,
                  int64_t channels);
  void (*bfloat16)(const uint16_t* x, const uint16_t* h, const uint16_t* gate, uint16_t* y,
                   int64_t channels);
  // The modulated norm z of y.
  void (*norm)(const float* y, const float* scale, const float* shift, const float* weight,
               const float* bias, float* z, int64_t channels, float eps);
  // y and z of halves, with a buffer of `channels` values; weight and bias are both given or null.
  void (*float16_norm)(const uint16_t* x, const uint16_t* h, const uint16_t* gate, uint16_t* y,
                       const uint16_t* scale, const uint16_t* shift, const float* weight,
                       const float* bias, uint16_t* z, float* buffer, int64_t channels, float eps);
  void (*bfloat16_norm)(const uint16_t* x, const uint16_t* h, const uint16_t* gate, uint16_t* y,
                        const uint16_t* scale, const uint16_t* shift, const float* weight,
                        const float* bias, uint16_t* z, float* buffer, int64_t channels, float eps);
  // Gradients of x, h and gate, given that of the sum, to which `more` (or null) is added.
  void (*backward)(const float* grad, const float* more, const float* h, const float* gate,
                   float* grad_x, float* grad_h, float* grad_gate, int64_t channels);
};

extern const GatedResidualRows kGatedResidualAvx2, kGatedResidualAvx512;

template <bool kStreamed>
static inline void gated_residual_row(const float* x, const float* h, const float* gate, float* y,
                                      int64_t channels) {
  write_row<kStreamed>(y, channels, [=](int64_t c) { return x[c] + gate[c] * h[c]; });
}

template <class Half>
static inline void gated_residual_halves(const uint16_t* x, const uint16_t* h, const uint16_t* gate,
                                         uint16_t* y, int64_t channels) {
  const auto at = [](const uint16_t* from) { return as_halves<Half>(from); };
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    const Vector sum = load_vector(at(x + c)) + load_vector(at(gate + c)) * load_vector(at(h + c));
    store_vector(as_halves<Half>(y + c), sum);
  }
  for (; c < channels; ++c) {
    const auto value = [&](const uint16_t* from) { return static_cast<float>(*at(from + c)); };
    y[c] = Half::of(value(x) + value(gate) * value(h)).bits;
  }
}

template <class Half>
static inline void gated_residual_norm_halves(const uint16_t* x, const uint16_t* h,
                                              const uint16_t* gate, uint16_t* y,
                                              const uint16_t* scale, const uint16_t* shift,
                                              const float* weight, const float* bias, uint16_t* z,
                                              float* buffer, int64_t channels, float eps) {
  gated_residual_halves<Half>(x, h, gate, y, channels);
  const Moments m = moments_of(WidenedRow<Half>{as_halves<Half>(y), buffer}, channels, eps);
  modulate_halves(buffer, m, as_halves<Half>(scale), as_halves<Half>(shift), weight, bias,
                  as_halves<Half>(z), channels);
}

static inline void gated_residual_norm_row(const float* y, const float* scale, const float* shift,
                                           const float* weight, const float* bias, float* z,
                                           int64_t channels, float eps) {
  row_modulate(y, row_moments(y, channels, eps), scale, shift, weight, bias, z, channels);
}

static inline void gated_residual_backward_row(const float* grad, const float* more, const float* h,
                                               const float* gate, float* grad_x, float* grad_h,
                                               float* grad_gate, int64_t channels) {
  if (more == nullptr) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) grad_x[c] = grad[c];
  } else {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) grad_x[c] = grad[c] + more[c];
  }
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    grad_h[c] = grad_x[c] * gate[c];
    grad_gate[c] = grad_x[c] * h[c];
  }
}

namespace {
constexpr GatedResidualRows gated_residual_rows(decltype(GatedResidualRows::stream) stream) {
  return {gated_residual_row<false>,
          stream,
          gated_residual_halves<Float16>,
          gated_residual_halves<Bfloat16>,
          gated_residual_norm_row,
          gated_residual_norm_halves<Float16>,
          gated_residual_norm_halves<Bfloat16>,
          gated_residual_backward_row};
}
}  // namespace
}  // namespace bdk
