// The last loop of denoise_step, one per instruction set.
#pragma once

#include <stdint.h>

namespace bdk {

struct Coefficients {
  float a, b, s;
};

// y = a x + b guided + s noise.
using Affine = void (*)(Coefficients by, const float* x, const float* guided, const float* noise,
                        float* y, int64_t count);

extern const Affine kAffineAvx2, kAffineAvx512;

static inline void affine(Coefficients by, const float* x, const float* guided, const float* noise,
                          float* y, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) y[i] = by.a * x[i] + by.b * guided[i] + by.s * noise[i];
}

}  // namespace bdk
