// The row functions of rms_norm, one set per instruction set.
#pragma once

#include <stdint.h>

#include "cpu/common/vectors.h"

namespace bdk {

struct RmsNormRows {
  // The sum of the squares, in double, since an error here is common to the whole row.
  double (*squares)(const float* x, int64_t count);
  // y = x factor weight; weight may be null.
  void (*scale)(const float* x, float factor, const float* weight, float* y, int64_t count);
};

extern const RmsNormRows kRmsNormAvx2, kRmsNormAvx512;

namespace {  // compiled anew for each instruction set

inline double rms_norm_squares(const float* x, int64_t count) {
  DoubleSum squares;
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      const WideVector value(load_vector(x + i + k * kLanes));
      squares.add(2 * k, value.halves[0] * value.halves[0]);
      squares.add(2 * k + 1, value.halves[1] * value.halves[1]);
    }
  }
  double sum = squares.total();
  for (; i < count; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

inline void rms_norm_scale(const float* x, float factor, const float* weight, float* y,
                           int64_t count) {
  if (weight == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) y[i] = x[i] * factor;
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) y[i] = x[i] * factor * weight[i];
  }
}

constexpr RmsNormRows kRmsNormHere = {rms_norm_squares, rms_norm_scale};

}  // namespace
}  // namespace bdk
