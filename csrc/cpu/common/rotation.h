// Rotary embedding of the heads of a token, one set of row functions per instruction set.
#pragma once

#include "cpu/common/vectors.h"

namespace bdk {

struct RotationRows {
  // y[c] = x[c] cos[c] + x[partner of c] sin[c], where partners are adjacent.
  void (*pairs)(const float* x, const float* cos, const float* sin, float* y, int64_t channels);
  // The same, where the partner is half a row away.
  void (*halves)(const float* x, const float* cos, const float* sin, float* y, int64_t channels);
};

extern const RotationRows kRotationAvx2, kRotationAvx512;

constexpr int64_t kMaxHeadChannels = 1024;

// The rotation of a token: makes a head of it from one of as many channels.
class Rotation {
 public:
  Rotation(int64_t channels, bool interleaved, bool back);

  // Takes the angles of a token: freqs [channels / 2, 2], cosine and sine of each pair.
  void set(const float* freqs);
  void operator()(const float* x, float* y) const { turn_(x, cos_, sin_, y, channels_); }

 private:
  void (*turn_)(const float*, const float*, const float*, float*, int64_t);
  int64_t channels_;
  bool interleaved_, back_;
  alignas(64) float cos_[kMaxHeadChannels], sin_[kMaxHeadChannels];  // of channels and partners
};

namespace {  // compiled anew for each instruction set

// Adjacent lanes exchanged.
inline Vector partners(Vector v) {
  using Pairs = uint64_t __attribute__((vector_size(4 * kLanes)));
  const Pairs pairs = (Pairs)v;
  return (Vector)(pairs >> 32 | pairs << 32);
}

inline void rotate_pairs(const float* x, const float* cos, const float* sin, float* y,
                         int64_t channels) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    const Vector v = load_vector(x + c);
    const Vector turned = v * load_vector(cos + c) + partners(v) * load_vector(sin + c);
    memcpy(y + c, &turned, sizeof turned);
  }
  for (; c < channels; ++c) y[c] = x[c] * cos[c] + x[c ^ 1] * sin[c];
}

inline void rotate_halves(const float* x, const float* cos, const float* sin, float* y,
                          int64_t channels) {
  const int64_t half = channels / 2;
#pragma omp simd
  for (int64_t c = 0; c < half; ++c) {
    const float a = x[c], b = x[c + half];
    y[c] = a * cos[c] + b * sin[c];
    y[c + half] = b * cos[c + half] + a * sin[c + half];
  }
}

constexpr RotationRows kRotationRows = {rotate_pairs, rotate_halves};

}  // namespace
}  // namespace bdk
