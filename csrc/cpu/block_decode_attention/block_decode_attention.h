// Attention of some query rows to the filled part of one head's cache, computed in float32, one
// function per instruction set.
//
// Keys come in tiles, and the softmax is that of FlashAttention (Dao et al. 2022, algorithm 1): the
// sums so far are relative to the largest score so far. Tiles of halves are widened, as a whole
// where several query rows read them.
#pragma once

#include <math.h>

#include "common/dtype.h"
#include "cpu/common/attention_tiles.h"
#include "cpu/common/halves.h"
#include "cpu/common/rows.h"

namespace bdk {

constexpr int kDecodeRows = 16;  // query rows of a tile
constexpr int kDecodeKeys = 64;
constexpr int kDecodeMaxChannels = kMaxChannels;

struct DecodeHead {
  const void *k, *v;  // one token every `k_stride`, `v_stride`
  int dtype;
  const HalfLoops* halves_or_null;  // null for float32
  int64_t k_stride, v_stride;
  int64_t keys;
  int head_dim;
  float scale;
};

// q, out: [rows, head_dim]; lse: [rows], log of the sum of the exponentials of the scores; at most
// kDecodeRows rows and at least one key.
struct DecodeLoops {
  void (*attend)(const DecodeHead& head, const float* q, int rows, float* out, float* lse);
};

extern const DecodeLoops kDecodeAvx2, kDecodeAvx512;

namespace {  // compiled anew for each instruction set

// Scores [rows, keys] become weights relative to the new `top`; what is older has lost `factor`.
inline void weigh(float* scores, int rows, int keys, float* top, float* total, float* factor) {
  for (int i = 0; i < rows; ++i) {
    float* p = scores + i * keys;
    float row_max = p[0];
#pragma omp simd reduction(max : row_max)
    for (int j = 0; j < keys; ++j) row_max = p[j] > row_max ? p[j] : row_max;
    row_max = row_max > top[i] ? row_max : top[i];
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < keys; ++j) {
      p[j] = exp_approximate(p[j] - row_max);
      sum += p[j];
    }
    factor[i] = exp_approximate(top[i] - row_max);
    total[i] = total[i] * factor[i] + sum;
    top[i] = row_max;
  }
}

// `count` tokens of keys or values from `first` on; halves go through `wide`.
inline Matrix tokens_of(const DecodeHead& head, const void* from, int64_t stride, int64_t first,
                        int count, float* wide) {
  if (head.halves_or_null == nullptr) {
    return {static_cast<const float*>(from) + first * stride, stride};
  }
  const int D = head.head_dim, width = padded(D);
  for (int t = 0; t < count; ++t) {
    head.halves_or_null->widen(static_cast<const uint16_t*>(from) + (first + t) * stride,
                               wide + t * width, D);
    for (int d = D; d < width; ++d) wide[t * width + d] = 0.0f;
  }
  return {wide, width};
}

// T: what keys and values are read as; float also for halves, which are widened first.
template <class T>
inline void decode_attend_as(const DecodeHead& head, const float* q, int rows, float* out,
                             float* lse) {
  alignas(64) float scores[kDecodeRows * kDecodeKeys], wide_keys[kDecodeKeys * kDecodeMaxChannels];
  alignas(64) float values[kDecodeKeys * kDecodeMaxChannels];
  alignas(64) float sums[kDecodeRows * kDecodeMaxChannels];
  alignas(64) float part[kDecodeRows * kDecodeMaxChannels];
  float top[kDecodeRows], total[kDecodeRows], factor[kDecodeRows];
  const int D = head.head_dim, width = padded(D);
  for (int i = 0; i < rows; ++i) {
    top[i] = -INFINITY;
    total[i] = 0.0f;
  }
  for (int64_t first = 0; first < head.keys; first += kDecodeKeys) {
    const int keys = static_cast<int>(head.keys - first < kDecodeKeys ? head.keys - first : 64);
    float* const products = first == 0 ? sums : part;
    if constexpr (std::is_same_v<T, float>) {
      const Matrix k = tokens_of(head, head.k, head.k_stride, first, keys, wide_keys);
      dots({q, D}, rows, k, keys, D, head.scale, scores);
      weigh(scores, rows, keys, top, total, factor);
      Matrix v = tokens_of(head, head.v, head.v_stride, first, keys, values);
      // A copy pays where several rows read it.
      if (v.at != values && (rows > 4 || width != D)) v = close_together(v, keys, D, values);
      product(scores, 1, keys, v, keys, rows, width, 1.0f, products, width);
    } else {
      const RowsOf<T> k{static_cast<const T*>(head.k) + first * head.k_stride, head.k_stride};
      const RowsOf<T> v{static_cast<const T*>(head.v) + first * head.v_stride, head.v_stride};
      dots({q, D}, rows, k, keys, D, head.scale, scores);
      weigh(scores, rows, keys, top, total, factor);
      product(scores, 1, keys, v, keys, rows, width, 1.0f, products, width);
    }
    if (first == 0) continue;
    for (int i = 0; i < rows; ++i) {
#pragma omp simd
      for (int d = 0; d < width; ++d) {
        sums[i * width + d] = sums[i * width + d] * factor[i] + part[i * width + d];
      }
    }
  }
  for (int i = 0; i < rows; ++i) {
    const float share = 1.0f / total[i];
    lse[i] = top[i] + logf(total[i]);
    for (int d = 0; d < D; ++d) out[i * D + d] = sums[i * width + d] * share;
  }
}

inline void decode_attend(const DecodeHead& head, const float* q, int rows, float* out,
                          float* lse) {
  const bool in_place = rows < kMinRows && head.head_dim % kPad == 0;
  if (in_place && head.dtype == kFloat16) {
    decode_attend_as<Float16>(head, q, rows, out, lse);
  } else if (in_place && head.dtype == kBFloat16) {
    decode_attend_as<Bfloat16>(head, q, rows, out, lse);
  } else {
    decode_attend_as<float>(head, q, rows, out, lse);
  }
}

}  // namespace
}  // namespace bdk
