// The row functions of rms_norm, one set per instruction set.
#pragma once

#include <stdint.h>

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
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
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
