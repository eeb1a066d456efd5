// Linear layers, float32, one function per instruction set.
//
// Rows of x and of the weight both have adjacent channels, so the result is dot products of rows,
// with vectors along the channels. Nothing is repacked first, which would pay for many rows only.
#pragma once

#include "cpu/common/vectors.h"

namespace bdk {

struct Linear {
  const float* x;  // [rows, channels], one row every `x_stride`
  int64_t x_stride;
  const float* weight;  // [features, channels], one row every `weight_stride`
  int64_t weight_stride;
  const float* bias_or_null;  // [features]
  float* y;                   // [rows, features], one row every `y_stride`
  int64_t y_stride;
  int64_t rows, channels;
};

struct LinearLoops {
  // Features [begin, end) of every row.
  void (*features)(const Linear& linear, int64_t begin, int64_t end);
};

extern const LinearLoops kLinearAvx2, kLinearAvx512;

namespace {  // compiled anew for each instruction set

// A block is kBlockRows rows by kBlockFeatures features; its sums stay in registers.
constexpr int kBlockRows = kLanes == 16 ? 4 : 3;
constexpr int kBlockFeatures = 4;
using Four = float __attribute__((vector_size(16)));

// Blocking for the caches: a few rows of x (16 KiB) and four features stay in the first-level
// cache; the features that those rows are multiplied by, at most 256 KiB, in the second.
constexpr int64_t kChannelTile = 1024, kFeatureTile = 64, kRowTileFloats = 4096;

// The sum of the lanes of each of kCount vectors.
template <int kCount>
inline Four totals(const Vector* v) {
#ifdef __AVX2__
  if constexpr (kCount == 4) {
    __m256 x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x[i] = eight_lanes(v[i]);
    const __m256 four = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    return (Four)_mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1));
  }
#endif
  Four total = {};
  for (int i = 0; i < kCount; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) total[i] += v[i][lane];
  }
  return total;
}

// `count` floats; the lanes after them are 0.
inline Vector load(const float* from, int64_t count) {
  Vector v = {};
  memcpy(&v, from, sizeof(float) * count);
  return v;
}

// Adds to kRows rows of kFeatures sums, or to the bias where these are the first channels, the
// products of channels [from, to).
template <int kRows, int kFeatures>
inline void block(const Linear& linear, int64_t row, int64_t feature, int64_t from, int64_t to) {
  const float* x = linear.x + row * linear.x_stride;
  const float* weight = linear.weight + feature * linear.weight_stride;
  Vector sum[kRows][kFeatures] = {};
  const auto add = [&](int64_t c, int64_t count) {
    Vector a[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) a[r] = load(x + r * linear.x_stride + c, count);
#pragma GCC unroll 4
    for (int f = 0; f < kFeatures; ++f) {
      Vector b = load(weight + f * linear.weight_stride + c, count);
#ifdef __AVX2__
      __asm__("" : "+v"(b));  // stays in a register: GCC would load it again in each product
#endif
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sum[r][f] += a[r] * b;
    }
  };
  int64_t c = from;
  for (; c + kLanes <= to; c += kLanes) add(c, kLanes);
  if (c < to) add(c, to - c);

  constexpr size_t kBytes = sizeof(float) * kFeatures;
  Four bias = {};
  if (from == 0 && linear.bias_or_null != nullptr) {
    memcpy(&bias, linear.bias_or_null + feature, kBytes);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    float* y = linear.y + (row + r) * linear.y_stride + feature;
    Four start = bias;
    if (from > 0) memcpy(&start, y, kBytes);
    const Four total = start + totals<kFeatures>(sum[r]);
    memcpy(y, &total, kBytes);
  }
}

// The rows [begin, end) of kFeatures features.
template <int kFeatures>
inline void rows(const Linear& linear, int64_t begin, int64_t end, int64_t feature, int64_t from,
                 int64_t to) {
  int64_t row = begin;
  for (; row + kBlockRows <= end; row += kBlockRows) {
    block<kBlockRows, kFeatures>(linear, row, feature, from, to);
  }
  const int64_t left = end - row;
  if (left == 1) block<1, kFeatures>(linear, row, feature, from, to);
  if (left == 2) block<2, kFeatures>(linear, row, feature, from, to);
  if (left == 3) block<3, kFeatures>(linear, row, feature, from, to);
}

inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }

inline void linear_features(const Linear& linear, int64_t begin, int64_t end) {
  for (int64_t from = 0; from < linear.channels; from += kChannelTile) {
    const int64_t to = minimum(from + kChannelTile, linear.channels);
    const int64_t blocks = kRowTileFloats / (to - from) / kBlockRows;
    const int64_t tile = kBlockRows * (blocks > 0 ? blocks : 1);
    for (int64_t first = begin; first < end; first += kFeatureTile) {
      const int64_t last = minimum(first + kFeatureTile, end);
      for (int64_t row = 0; row < linear.rows; row += tile) {
        const int64_t row_end = minimum(row + tile, linear.rows);
        int64_t f = first;
        for (; f + kBlockFeatures <= last; f += kBlockFeatures) {
          rows<kBlockFeatures>(linear, row, row_end, f, from, to);
        }
        for (; f < last; ++f) rows<1>(linear, row, row_end, f, from, to);
      }
    }
  }
}

}  // namespace
}  // namespace bdk
