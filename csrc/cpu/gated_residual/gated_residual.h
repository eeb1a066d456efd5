// The row functions of gated_residual, one set per instruction set.
#pragma once

#include "cpu/common/halves.h"
#include "cpu/common/rows.h"

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
  const auto at = [](const uint16_t* from) { return reinterpret_cast<const Half*>(from); };
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    const Vector sum = load_vector(at(x + c)) + load_vector(at(gate + c)) * load_vector(at(h + c));
    store_vector(reinterpret_cast<Half*>(y + c), sum);
  }
  for (; c < channels; ++c) {
    const auto value = [&](const uint16_t* from) { return static_cast<float>(*at(from + c)); };
    y[c] = Half::of(value(x) + value(gate) * value(h)).bits;
  }
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

}  // namespace bdk
