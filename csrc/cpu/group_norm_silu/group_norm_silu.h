// The loops of group_norm_silu, one set per instruction set, for both layouts of a feature map.
//
// "Last": positions of `channels` adjacent values. "Span": the adjacent values of one channel (or,
// for moments, of one group). Once the moments are known, the op is act((x - mean) a + d) with
// three coefficients per channel, so these loops need no weights or scales.
#pragma once

#include "common/group_norm.h"
#include "cpu/common/rows.h"
#include "cpu/common/vectors.h"

namespace bdk {

constexpr int64_t kNormMaxChannels = 4096;  // of a channels-last map; their sums are on the stack
constexpr int64_t kNormSpan = 4096;         // values whose moments are computed at a time
constexpr int64_t kNormHalves = 8192;       // halves that are widened at a time, at most
constexpr int64_t kNormFew = 2048;  // the same where they are read once: the first-level cache
// Of a map whose workspace is on the stack: chunks times groups, and channels, of all images.
constexpr int64_t kNormSmallSpreads = 512, kNormSmallChannels = 1024;

// Coefficients: z = (x - mean) a + d, and the gradient of x is a grad_z - q - (x - mean) r.
struct NormCoefficients {
  const float *mean, *a, *d, *q, *r;
};

struct GroupNormLoops {
  void (*moments_last)(const float* x, int64_t positions, int64_t channels, int64_t groups,
                       Spread* spreads);
  Spread (*moments_span)(const float* x, int64_t count);
  void (*apply_last)(const float* x, int64_t positions, int64_t channels, NormCoefficients k,
                     bool silu, float* y);
  void (*apply_span)(const float* x, int64_t count, float mean, float a, float d, bool silu,
                     float* y);
  // Sums over positions of the gradient of z, and of that gradient times (x - mean); those of a
  // span are added to what is there.
  void (*sums_last)(const float* grad, const float* x, int64_t positions, int64_t channels,
                    NormCoefficients k, bool silu, float* grad_z, float* grad_z_x);
  void (*sums_span)(const float* grad, const float* x, int64_t count, float mean, float a, float d,
                    bool silu, double* grad_z, double* grad_z_x);
  void (*backward_last)(const float* grad, const float* x, int64_t positions, int64_t channels,
                        NormCoefficients k, bool silu, float* grad_x);
  void (*backward_span)(const float* grad, const float* x, int64_t count, NormCoefficients k,
                        int64_t channel, bool silu, float* grad_x);
};

extern const GroupNormLoops kGroupNormAvx2, kGroupNormAvx512;

namespace {  // compiled anew for each instruction set

// Positions that a loop over channels takes at once: the loop is short, and its prologue and the
// loads of the coefficients cost as much as several positions.
constexpr int kTogether = 4;

template <int kPositions>
inline void add_moments(const float* x, int64_t channels, const float* pivots, float* sums,
                        float* squares) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    float sum = 0.0f, square = 0.0f;
    for (int i = 0; i < kPositions; ++i) {
      const float distance = x[i * channels + c] - pivots[c];
      sum += distance;
      square += distance * distance;
    }
    sums[c] += sum;
    squares[c] += square;
  }
}

// In one pass, from distances to the mean of a few values of the group, with which the sums of
// squares are nearly as small as with the mean of all.
constexpr int64_t kPivotSamples = 8;
// Positions summed in float32; longer sums would lose too much accuracy.
constexpr int64_t kFloatPositions = 64;

inline void norm_moments_last(const float* x, int64_t positions, int64_t channels, int64_t groups,
                              Spread* spreads) {
  float pivots[kNormMaxChannels], sums[kNormMaxChannels], squares[kNormMaxChannels];
  double all_sums[kNormMaxChannels], all_squares[kNormMaxChannels];
  const int64_t width = channels / groups;
  for (int64_t c = 0; c < channels; ++c) pivots[c] = 0.0f;
  for (int64_t c = 0; c < channels; ++c) all_sums[c] = all_squares[c] = 0.0;
  for (int64_t sample = 0; sample < kPivotSamples; ++sample) {
    const float* from = x + positions * sample / kPivotSamples * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) pivots[c] += from[c];
  }
  for (int64_t g = 0; g < groups; ++g) {
    float sum = 0.0f;
    for (int64_t c = g * width; c < (g + 1) * width; ++c) sum += pivots[c];
    const float pivot = sum / static_cast<float>(kPivotSamples * width);
    for (int64_t c = g * width; c < (g + 1) * width; ++c) pivots[c] = pivot;
  }
  for (int64_t p = 0; p < positions;) {
    const int64_t end = p + kFloatPositions < positions ? p + kFloatPositions : positions;
    for (int64_t c = 0; c < channels; ++c) sums[c] = squares[c] = 0.0f;
    for (; p + kTogether <= end; p += kTogether) {
      add_moments<kTogether>(x + p * channels, channels, pivots, sums, squares);
    }
    for (; p < end; ++p) add_moments<1>(x + p * channels, channels, pivots, sums, squares);
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      all_sums[c] += static_cast<double>(sums[c]);
      all_squares[c] += static_cast<double>(squares[c]);
    }
  }
  const double count = static_cast<double>(positions * width);
  for (int64_t g = 0; g < groups; ++g) {
    double sum = 0.0, square = 0.0;
    for (int64_t c = g * width; c < (g + 1) * width; ++c) {
      sum += all_sums[c];
      square += all_squares[c];
    }
    const double shift = sum / count, rest = square - sum * shift;
    spreads[g] = {count, static_cast<double>(pivots[g * width]) + shift, rest < 0.0 ? 0.0 : rest};
  }
}

// A piece of a span is summed by kSums sums in float32, each of few values whatever the instruction
// set; those of all pieces are added in double.
constexpr int kSums = 32;
constexpr int64_t kFloatValues = 512;
using Doubles = double __attribute__((vector_size(8 * kLanes)));

inline double total_of(const Doubles* sums) {
  double total = 0.0;
  for (int n = 0; n < kSums; ++n) total += sums[n / kLanes][n % kLanes];
  return total;
}

// In one pass as well, from distances to the mean of a few values of each piece.
inline Spread norm_moments_span(const float* x, int64_t count) {
  Spread whole = {0.0, 0.0, 0.0};
  for (int64_t first = 0; first < count; first += kNormSpan) {
    const int64_t some = count - first < kNormSpan ? count - first : kNormSpan;
    const float* from = x + first;
    float samples = 0.0f;
    for (int64_t i = 0; i < kPivotSamples; ++i) samples += from[some * i / kPivotSamples];
    const float pivot = samples / static_cast<float>(kPivotSamples);
    constexpr int kVectors = kSums / kLanes;
    Doubles all_sums[kVectors] = {}, all_squares[kVectors] = {};
    const int64_t whole_end = some / kSums * kSums;
    for (int64_t begin = 0; begin < whole_end; begin += kFloatValues) {
      const int64_t end = begin + kFloatValues < whole_end ? begin + kFloatValues : whole_end;
      Vector sums[kVectors] = {}, sums_of_squares[kVectors] = {};
      for (int64_t i = begin; i < end; i += kSums) {
#pragma GCC unroll 8
        for (int n = 0; n < kVectors; ++n) {
          const Vector distance = load_vector(from + i + n * kLanes) - pivot;
          sums[n] += distance;
          sums_of_squares[n] += distance * distance;
        }
      }
      for (int n = 0; n < kVectors; ++n) {
        all_sums[n] += __builtin_convertvector(sums[n], Doubles);
        all_squares[n] += __builtin_convertvector(sums_of_squares[n], Doubles);
      }
    }
    double sum = total_of(all_sums), squares = total_of(all_squares);
    for (int64_t i = whole_end; i < some; ++i) {
      const double distance = static_cast<double>(from[i] - pivot);
      sum += distance;
      squares += distance * distance;
    }
    const double number = static_cast<double>(some), shift = sum / number;
    const double rest = squares - sum * shift;
    whole = merge(whole, {number, static_cast<double>(pivot) + shift, rest < 0.0 ? 0.0 : rest});
  }
  return whole;
}

template <bool kSilu>
inline float norm_value(float x, float mean, float a, float d) {
  const float z = (x - mean) * a + d;
  return kSilu ? silu(z) : z;
}

// Gradient of z: silu'(z) = s (1 + z (1 - s)) with s = sigmoid(z).
template <bool kSilu>
inline float norm_slope(float grad, float x, float mean, float a, float d) {
  if (!kSilu) return grad;
  const float z = (x - mean) * a + d;
  const float s = sigmoid(z);
  return grad * s * (1.0f + z * (1.0f - s));
}

template <bool kSilu, int kPositions>
inline void apply_to(const float* x, int64_t channels, NormCoefficients k, float* y) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    for (int i = 0; i < kPositions; ++i) {
      y[i * channels + c] = norm_value<kSilu>(x[i * channels + c], k.mean[c], k.a[c], k.d[c]);
    }
  }
}

template <bool kSilu>
inline void apply_last(const float* x, int64_t positions, int64_t channels, NormCoefficients k,
                       float* y) {
  int64_t p = 0;
  for (; p + kTogether <= positions; p += kTogether) {
    apply_to<kSilu, kTogether>(x + p * channels, channels, k, y + p * channels);
  }
  for (; p < positions; ++p) apply_to<kSilu, 1>(x + p * channels, channels, k, y + p * channels);
}

inline void norm_apply_last(const float* x, int64_t positions, int64_t channels, NormCoefficients k,
                            bool silu, float* y) {
  silu ? apply_last<true>(x, positions, channels, k, y)
       : apply_last<false>(x, positions, channels, k, y);
}

template <bool kSilu>
inline void apply_span(const float* x, int64_t count, float mean, float a, float d, float* y) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) y[i] = norm_value<kSilu>(x[i], mean, a, d);
}

inline void norm_apply_span(const float* x, int64_t count, float mean, float a, float d, bool silu,
                            float* y) {
  silu ? apply_span<true>(x, count, mean, a, d, y) : apply_span<false>(x, count, mean, a, d, y);
}

template <bool kSilu>
inline void sums_last(const float* grad, const float* x, int64_t positions, int64_t channels,
                      NormCoefficients k, float* grad_z, float* grad_z_x) {
  for (int64_t c = 0; c < channels; ++c) grad_z[c] = grad_z_x[c] = 0.0f;
  for (int64_t p = 0; p < positions; ++p, x += channels, grad += channels) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float slope = norm_slope<kSilu>(grad[c], x[c], k.mean[c], k.a[c], k.d[c]);
      grad_z[c] += slope;
      grad_z_x[c] += slope * (x[c] - k.mean[c]);
    }
  }
}

inline void norm_sums_last(const float* grad, const float* x, int64_t positions, int64_t channels,
                           NormCoefficients k, bool silu, float* grad_z, float* grad_z_x) {
  silu ? sums_last<true>(grad, x, positions, channels, k, grad_z, grad_z_x)
       : sums_last<false>(grad, x, positions, channels, k, grad_z, grad_z_x);
}

template <bool kSilu>
inline void sums_span(const float* grad, const float* x, int64_t count, float mean, float a,
                      float d, double* grad_z, double* grad_z_x) {
  double sum = 0.0, with_x = 0.0;
  for (int64_t begin = 0; begin < count; begin += kFloatValues) {
    const int64_t end = begin + kFloatValues < count ? begin + kFloatValues : count;
    float sums[kSums] = {}, sums_with_x[kSums] = {};
    for (int64_t i = begin; i < end; i += kSums) {
      const int64_t some = end - i < kSums ? end - i : kSums;
#pragma omp simd
      for (int64_t n = 0; n < some; ++n) {
        const float slope = norm_slope<kSilu>(grad[i + n], x[i + n], mean, a, d);
        sums[n] += slope;
        sums_with_x[n] += slope * (x[i + n] - mean);
      }
    }
    for (int n = 0; n < kSums; ++n) {
      sum += static_cast<double>(sums[n]);
      with_x += static_cast<double>(sums_with_x[n]);
    }
  }
  *grad_z += sum;
  *grad_z_x += with_x;
}

inline void norm_sums_span(const float* grad, const float* x, int64_t count, float mean, float a,
                           float d, bool silu, double* grad_z, double* grad_z_x) {
  silu ? sums_span<true>(grad, x, count, mean, a, d, grad_z, grad_z_x)
       : sums_span<false>(grad, x, count, mean, a, d, grad_z, grad_z_x);
}

template <bool kSilu>
inline float norm_gradient(float grad, float x, float mean, float a, float d, float q, float r) {
  return norm_slope<kSilu>(grad, x, mean, a, d) * a - q - (x - mean) * r;
}

template <bool kSilu>
inline void backward_last(const float* grad, const float* x, int64_t positions, int64_t channels,
                          NormCoefficients k, float* grad_x) {
  for (int64_t p = 0; p < positions; ++p, x += channels, grad += channels, grad_x += channels) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      grad_x[c] = norm_gradient<kSilu>(grad[c], x[c], k.mean[c], k.a[c], k.d[c], k.q[c], k.r[c]);
    }
  }
}

inline void norm_backward_last(const float* grad, const float* x, int64_t positions,
                               int64_t channels, NormCoefficients k, bool silu, float* grad_x) {
  silu ? backward_last<true>(grad, x, positions, channels, k, grad_x)
       : backward_last<false>(grad, x, positions, channels, k, grad_x);
}

template <bool kSilu>
inline void backward_span(const float* grad, const float* x, int64_t count, NormCoefficients k,
                          int64_t c, float* grad_x) {
  const float mean = k.mean[c], a = k.a[c], d = k.d[c], q = k.q[c], r = k.r[c];
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    grad_x[i] = norm_gradient<kSilu>(grad[i], x[i], mean, a, d, q, r);
  }
}

inline void norm_backward_span(const float* grad, const float* x, int64_t count, NormCoefficients k,
                               int64_t channel, bool silu, float* grad_x) {
  silu ? backward_span<true>(grad, x, count, k, channel, grad_x)
       : backward_span<false>(grad, x, count, k, channel, grad_x);
}

constexpr GroupNormLoops kGroupNormLoops = {norm_moments_last,  norm_moments_span, norm_apply_last,
                                            norm_apply_span,    norm_sums_last,    norm_sums_span,
                                            norm_backward_last, norm_backward_span};

}  // namespace
}  // namespace bdk
