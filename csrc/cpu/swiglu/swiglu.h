// The row functions of swiglu, one set per instruction set.
#pragma once

#include "cpu/common/rows.h"

namespace bdk {

struct SwigluRows {
  void (*forward)(const float* gate, const float* value, float* y, int64_t count);
  // The same with non-temporal stores (see write_row), or null.
  void (*stream)(const float* gate, const float* value, float* y, int64_t count);
  void (*backward)(const float* grad, const float* gate, const float* value, float* grad_gate,
                   float* grad_value, int64_t count);
};

extern const SwigluRows kSwigluAvx2, kSwigluAvx512;

template <bool kStreamed>
static inline void swiglu_row(const float* gate, const float* value, float* y, int64_t count) {
  write_row<kStreamed>(y, count, [=](int64_t c) { return silu(gate[c]) * value[c]; });
}

// d/dg of g sigmoid(g) is sigmoid(g) (1 + g (1 - sigmoid(g))).
static inline void swiglu_backward_row(const float* grad, const float* gate, const float* value,
                                       float* grad_gate, float* grad_value, int64_t count) {
#pragma omp simd
  for (int64_t c = 0; c < count; ++c) {
    const float s = sigmoid(gate[c]);
    grad_gate[c] = grad[c] * value[c] * s * (1.0f + gate[c] * (1.0f - s));
    grad_value[c] = grad[c] * gate[c] * s;
  }
}

}  // namespace bdk
