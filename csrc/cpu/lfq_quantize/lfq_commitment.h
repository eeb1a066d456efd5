// The commitment loss of lfq_quantize, float32: plain loops, compiled for every instruction set.
#pragma once

#include <math.h>
#include <stdint.h>

namespace bdk {

struct LfqCommitmentLoops {
  // The sum of (x - q)^2, which is (|x| - 1)^2.
  double (*sum)(const float* x, int64_t values);
  // grad_x = grad + factor (x - q)
  void (*backward)(const float* grad, const float* x, float factor, float* grad_x, int64_t values);
};

extern const LfqCommitmentLoops kLfqCommitmentAvx2, kLfqCommitmentAvx512;

static inline double lfq_commitment_sum(const float* x, int64_t values) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < values; ++i) {
    const float distance = fabsf(x[i]) - 1.0f;
    sum += static_cast<double>(distance * distance);
  }
  return sum;
}

static inline void lfq_commitment_backward(const float* grad, const float* x, float factor,
                                           float* grad_x, int64_t values) {
#pragma omp simd
  for (int64_t i = 0; i < values; ++i) {
    const float q = x[i] > 0.0f ? 1.0f : -1.0f;
    grad_x[i] = grad[i] + factor * (x[i] - q);
  }
}

}  // namespace bdk
