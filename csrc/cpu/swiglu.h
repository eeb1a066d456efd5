// The row functions of swiglu, one set per instruction set.
#pragma once

#include "cpu/rows.h"

namespace bdk {

struct SwigluRows {
  // h: [2 * hidden], gate half first.
  void (*forward)(const float* h, float* y, int64_t hidden);
  void (*backward)(const float* grad, const float* h, float* of_h, int64_t hidden);
};

extern const SwigluRows kSwigluAvx2, kSwigluAvx512;

static inline void swiglu_row(const float* h, float* y, int64_t hidden) {
  const float* value = h + hidden;
#pragma omp simd
  for (int64_t c = 0; c < hidden; ++c) y[c] = h[c] * sigmoid(h[c]) * value[c];
}

// d/dg of g sigmoid(g) is sigmoid(g) (1 + g (1 - sigmoid(g))).
static inline void swiglu_backward_row(const float* grad, const float* h, float* of_h,
                                       int64_t hidden) {
  const float* value = h + hidden;
  float* of_value = of_h + hidden;
#pragma omp simd
  for (int64_t c = 0; c < hidden; ++c) {
    const float s = sigmoid(h[c]);
    of_h[c] = grad[c] * value[c] * s * (1.0f + h[c] * (1.0f - s));
    of_value[c] = grad[c] * h[c] * s;
  }
}

}  // namespace bdk
