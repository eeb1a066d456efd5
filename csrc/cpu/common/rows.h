// Functions that the row kernels of the denoising head share. Every file that includes this
// compiles its own copy for its instruction set: most loops are plain, and the compiler vectorises
// them.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cpu/common/vectors.h"

namespace bdk {

// y[c] = value(c) for all c. kStreamed: with non-temporal stores; a reader in another thread needs
// a fence first. Values are stored as they are computed: filling tiles of 4 KB first took longer
// than normal stores.
template <bool kStreamed, class Value>
static inline void write_row(float* y, int64_t count, const Value& value) {
  int64_t c = 0;
#ifdef __AVX2__
  if (kStreamed) {
    constexpr int kBlock = 32;  // computed in registers
    for (; c < count && reinterpret_cast<uintptr_t>(y + c) % 32 != 0; ++c) y[c] = value(c);
    for (; c + kBlock <= count; c += kBlock) {
      alignas(64) float block[kBlock];
#pragma omp simd
      for (int i = 0; i < kBlock; ++i) block[i] = value(c + i);
      for (int i = 0; i < kBlock; i += 8) _mm256_stream_ps(y + c + i, _mm256_load_ps(block + i));
    }
  }
#endif
#pragma omp simd
  for (int64_t i = c; i < count; ++i) y[i] = value(i);
}

struct Moments {
  float mean, rstd;
};

namespace {  // vectors differ between the files that include this

// A row of float32.
struct PlainRow {
  const float* x;
  Vector vector(int64_t c) const { return load_vector(x + c); }
  float value(int64_t c) const { return x[c]; }
};

// Mean and 1 / sqrt(variance + eps), in double, since an error here is common to the whole row. The
// sums are of distances to the first value: where that lies far from the mean, the variance is
// large too, so a large mean costs no accuracy. Values are asked for in order, the first one once
// more before all others.
template <class Row>
inline Moments moments_of(const Row& row, int64_t channels, float eps) {
  const double first = static_cast<double>(row.value(0));
  DoubleSum sums, squares_of;
  int64_t c = 0;
  for (; c + 2 * kLanes <= channels; c += 2 * kLanes) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const WideVector x(row.vector(c + i * kLanes));
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const DoubleVector distance = x.halves[half] - first;
        sums.add(2 * i + half, distance);
        squares_of.add(2 * i + half, distance * distance);
      }
    }
  }
  double sum = sums.total(), square = squares_of.total();
  for (; c < channels; ++c) {
    const double distance = static_cast<double>(row.value(c)) - first;
    sum += distance;
    square += distance * distance;
  }
  const double mean = sum / static_cast<double>(channels);
  const double variance = square / static_cast<double>(channels) - mean * mean;
  return {static_cast<float>(first + mean),
          static_cast<float>(1.0 / sqrt(variance + static_cast<double>(eps)))};
}

}  // namespace

static inline Moments row_moments(const float* x, int64_t channels, float eps) {
  return moments_of(PlainRow{x}, channels, eps);
}

// y = (w (x - mean) rstd + b) (1 + scale) + shift; weight and bias may be null.
static inline void row_modulate(const float* x, Moments m, const float* scale, const float* shift,
                                const float* weight, const float* bias, float* y,
                                int64_t channels) {
  if (weight == nullptr && bias == nullptr) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      y[c] = (x[c] - m.mean) * m.rstd * (1.0f + scale[c]) + shift[c];
    }
    return;
  }
  if (weight != nullptr && bias != nullptr) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      y[c] = ((x[c] - m.mean) * m.rstd * weight[c] + bias[c]) * (1.0f + scale[c]) + shift[c];
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {  // rare: no known model has only one of the two
    const float w = weight != nullptr ? weight[c] : 1.0f;
    const float b = bias != nullptr ? bias[c] : 0.0f;
    y[c] = ((x[c] - m.mean) * m.rstd * w + b) * (1.0f + scale[c]) + shift[c];
  }
}

// e^x within two units in the last place, from e^-87 to e^88. x log2(e) is split into an integer,
// which becomes the exponent, and a rest of at most one half, for which a polynomial is used.
static inline float exp_approximate(float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 2^23: adding it rounds to an integer
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504088896341f + kShift;
  const float n = shifted - kShift;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  uint32_t bits;  // unsigned: for a NaN the arithmetic below may overflow
  memcpy(&bits, &shifted, sizeof bits);
  const uint32_t power = (bits - 0x4B400000u + 127u) << 23;  // 0x4B400000 is the pattern of kShift
  float scale;
  memcpy(&scale, &power, sizeof scale);
  return p * scale;
}

// e^-x, infinite where exp_approximate saturates: a saturated value times a large x would not
// vanish.
static inline float exp_minus(float x) { return x < -88.0f ? INFINITY : exp_approximate(-x); }

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp_minus(x)); }

static inline float silu(float x) { return x / (1.0f + exp_minus(x)); }

}  // namespace bdk
