// block_causal_attention of one head, float32, one pair of functions per instruction set: the
// formulas of FlashAttention-2 (Dao 2023, section 3.1) with all keys of a head in one buffer.
//
// A strip is the queries that a product takes at a time. It computes the scores of the keys from
// the first to the last that any of its queries sees, in whole panels; those that a query does not
// see become weights of 0. Where a value is NaN or infinite, which 0 does not remove, all queries
// of a strip see the same keys, and the products with weights take no others.
#pragma once

#include <math.h>

#include "cpu/common/attention_tiles.h"
#include "cpu/common/rows.h"

namespace bdk {

constexpr int kStrip = 16;
constexpr int kStrips = 4;  // whose weights the backward pass holds at a time

struct CausalHead {
  const int32_t *start, *end;  // [tokens]
  const float* q;              // [tokens, padded(head_dim)], one every `q_stride`
  int64_t q_stride;
  const float *k, *v;                // [padded(keys), padded(head_dim)], 0 beyond keys and channels
  const float *k_panels, *v_panels;  // the same, 16 keys side by side: [keys / 16, channels, 16]
  int tokens, keys, head_dim;
  float scale;
  bool finite;  // all values are
};

// grad, dq: [tokens, padded(head_dim)], one every `*_stride`.
struct CausalGradient {
  const float* grad;
  const float* lse;  // [tokens]
  int64_t grad_stride;
  float* dq;
  int64_t dq_stride;
  float *dk, *dv;            // [padded(keys), padded(head_dim)], added to
  float *weights, *dscores;  // [kStrips * kStrip, padded(keys)]
};

struct CausalLoops {
  // to: the panels of `rows` [keys, width], multiples of 16 both.
  void (*panels)(const float* rows, int keys, int width, float* to);
  // Whether no value of `rows` [count, width] is NaN or infinite; width is a multiple of 16.
  bool (*are_finite)(const float* rows, int64_t stride, int count, int width);
  // out: [tokens, padded(head_dim)], one every `out_stride`; weights: [kStrip, padded(keys)].
  void (*forward)(const CausalHead& head, float* out, int64_t out_stride, float* lse,
                  float* weights);
  void (*backward)(const CausalHead& head, const CausalGradient& gradient);
};

extern const CausalLoops kCausalAvx2, kCausalAvx512;

namespace {  // compiled anew for each instruction set

inline int least(int a, int b) { return a < b ? a : b; }

struct Interval {
  int begin, end;
};

inline Interval interval_of(const CausalHead& head, int query) {
  const int32_t begin = head.start[query], end = head.end[query];
  return {begin < 0 ? 0 : begin, end < head.keys ? end : head.keys};
}

// Some queries that follow each other and the keys that any of them sees.
struct Strip {
  int query, rows;
  Interval seen;  // empty if no query sees any
  // The panels that hold them.
  int first() const { return seen.begin / kPad * kPad; }
  int columns() const { return padded(seen.end) - first(); }
};

// The strip that begins with `query`.
inline Strip strip_at(const CausalHead& head, int query) {
  Strip strip = {query, 0, {head.keys, 0}};
  const Interval own = interval_of(head, query);
  while (strip.rows < kStrip && query + strip.rows < head.tokens) {
    const Interval keys = interval_of(head, query + strip.rows);
    if (!head.finite && (keys.begin != own.begin || keys.end != own.end)) break;
    ++strip.rows;
    if (keys.begin >= keys.end) continue;
    if (keys.begin < strip.seen.begin) strip.seen.begin = keys.begin;
    if (keys.end > strip.seen.end) strip.seen.end = keys.end;
  }
  if (strip.seen.begin >= strip.seen.end) strip.seen = {0, 0};
  return strip;
}

// Products of the rows of a strip with those of its keys, scores [rows, stride] from key 0 on.
inline void strip_scores(const Strip& strip, const float* rows, int64_t row_stride,
                         const float* panels, int head_dim, float factor, float* scores,
                         int64_t stride) {
  const int64_t width = padded(head_dim), first = strip.first();
  product(rows, 1, row_stride, {panels + first * width, kPad}, head_dim, strip.rows,
          strip.columns(), factor, scores + first, stride, width * kPad);
}

using Lanes = int32_t __attribute__((vector_size(4 * kLanes)));

inline Lanes lane_numbers() {
  Lanes numbers;
  for (int i = 0; i < kLanes; ++i) numbers[i] = i;
  return numbers;
}

// `v`, of the keys from `key` on, with `otherwise` for those outside of the interval.
inline Vector seen_alone(Vector v, int key, Interval keys, float otherwise) {
  const Lanes number = lane_numbers() + key;
  return ((number >= keys.begin) & (number < keys.end)) ? v : broadcast(otherwise);
}

inline float lanes_max(Vector v) {
#ifdef __AVX512F__
  return _mm512_reduce_max_ps((__m512)v);
#else
  float top = v[0];
  for (int i = 1; i < kLanes; ++i) top = v[i] > top ? v[i] : top;
  return top;
#endif
}

inline float lanes_sum(Vector v) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)v);
#else
  float sum = 0.0f;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
#endif
}

// Scores of a query for the keys of its strip, from `p` on, become weights; returns the log of the
// sum of the exponentials.
inline float softmax_row(const Strip& strip, Interval keys, float* p) {
  const int first = strip.first(), end = first + strip.columns();
  if (keys.begin >= keys.end) {
    for (int j = first; j < end; ++j) p[j] = 0.0f;
    return -INFINITY;
  }
  Vector tops = broadcast(-INFINITY);
  for (int j = first; j < end; j += kLanes) {
    const Vector v = seen_alone(load_vector(p + j), j, keys, -INFINITY);
    tops = v > tops ? v : tops;
  }
  const float top = lanes_max(tops);
  Vector sums = {};
  for (int j = first; j < end; j += kLanes) {
    float* at = p + j;
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) at[i] = exp_approximate(at[i] - top);
    const Vector v = seen_alone(load_vector(at), j, keys, 0.0f);
    memcpy(at, &v, sizeof v);
    sums += v;
  }
  const float sum = lanes_sum(sums), share = 1.0f / sum;
  for (int j = first; j < end; j += kLanes) {
    const Vector v = load_vector(p + j) * share;
    memcpy(p + j, &v, sizeof v);
  }
  return top + logf(sum);
}

inline bool causal_are_finite(const float* rows, int64_t stride, int count, int width) {
  Vector sum[2 * kVectors] = {};  // of zeros and NaN
  for (int row = 0; row < count; ++row) {
    for (int c = 0; c < width; c += kPad) {
      for (int i = 0; i < kVectors; ++i) {
        sum[(row & 1) * kVectors + i] += 0.0f * load_vector(rows + row * stride + c + i * kLanes);
      }
    }
  }
  for (int i = 1; i < 2 * kVectors; ++i) sum[0] += sum[i];
  return lanes_sum(sum[0]) == 0.0f;
}

inline void causal_panels(const float* rows, int keys, int width, float* to) {
  for (int key = 0; key < keys; key += kPad) {
    transpose({rows + static_cast<int64_t>(key) * width, width}, width,
              to + static_cast<int64_t>(key) * width);
  }
}

// Asks for `count` rows, which may lie far from each other, as the processor does not foresee them.
template <bool kWrite>
inline void prefetch_rows(const float* rows, int64_t stride, int count, int width) {
  for (int r = 0; r < count; ++r) {
    for (int c = 0; c < width; c += kPad) __builtin_prefetch(rows + r * stride + c, kWrite);
  }
}

inline void causal_forward(const CausalHead& head, float* out, int64_t out_stride, float* lse,
                           float* weights) {
  const int width = padded(head.head_dim), stride = padded(head.keys);
  Strip strip;
  for (int t = 0; t < head.tokens; t += strip.rows) {
    strip = strip_at(head, t);
    const Interval seen = strip.seen;
    const int next = t + strip.rows, following = least(kStrip, head.tokens - next);
    prefetch_rows<false>(head.q + next * head.q_stride, head.q_stride, following, width);
    prefetch_rows<true>(out + t * out_stride, out_stride, strip.rows, width);
    strip_scores(strip, head.q + t * head.q_stride, head.q_stride, head.k_panels, head.head_dim,
                 head.scale, weights, stride);
    for (int r = 0; r < strip.rows; ++r) {
      lse[t + r] = softmax_row(strip, interval_of(head, t + r), weights + r * stride);
    }
    product(weights + seen.begin, 1, stride,
            {head.v + static_cast<int64_t>(seen.begin) * width, width}, seen.end - seen.begin,
            strip.rows, width, 1.0f, out + t * out_stride, out_stride);
  }
}

// Weights of a query from its scores, and gradients of the scores from those of the weights, which
// `dp` holds before. The weights are made to sum up to 1, so that the rounding of `lse`, an error
// that they have in common, does not matter; and what is subtracted from `dp` is its mean by these
// weights rather than the product of result and gradient, so that equal terms cancel.
inline void gradient_row(const Strip& strip, Interval keys, float lse, float* p, float* dp) {
  const int first = strip.first(), end = first + strip.columns();
  const bool blind = keys.begin >= keys.end;
  Vector sums = {}, products = {};
  for (int j = first; j < end; j += kLanes) {
    float* at = p + j;
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) at[i] = exp_approximate(at[i] - lse);
    const Vector v = seen_alone(load_vector(at), j, keys, 0.0f);
    memcpy(at, &v, sizeof v);
    sums += v;
    products += seen_alone(v * load_vector(dp + j), j, keys, 0.0f);
  }
  const float share = blind ? 0.0f : 1.0f / lanes_sum(sums);
  const float mean = lanes_sum(products) * share;
  for (int j = first; j < end; j += kLanes) {
    const Vector v = load_vector(p + j) * share;
    const Vector dv = seen_alone(v * (load_vector(dp + j) - mean), j, keys, 0.0f);
    memcpy(p + j, &v, sizeof v);
    memcpy(dp + j, &dv, sizeof dv);
  }
}

// Adds the gradients of keys and values that some strips give, from their weights and the gradients
// of their scores. Strips that follow each other and see a panel of keys are taken together.
inline void causal_of_keys(const CausalHead& head, const CausalGradient& g, const Strip* strips,
                           int count) {
  const int width = padded(head.head_dim), stride = padded(head.keys);
  const int base = strips[0].query;
  const auto sees = [](const Strip& strip, int key) {
    return strip.first() <= key && key < strip.first() + strip.columns();
  };
  for (int key = 0; key < head.keys; key += kPad) {
    for (int i = 0; i < count; ++i) {
      if (!sees(strips[i], key)) continue;
      Interval keys = {strips[i].seen.begin, strips[i].seen.end};
      const int from = i;
      for (; i + 1 < count && head.finite && sees(strips[i + 1], key); ++i) {
        const Interval more = strips[i + 1].seen;
        if (more.begin < keys.begin) keys.begin = more.begin;
        if (more.end > keys.end) keys.end = more.end;
      }
      const int begin = key > keys.begin ? key : keys.begin;
      const int end = key + kPad < keys.end ? key + kPad : keys.end;
      const int64_t query = strips[from].query;
      const int depth = strips[i].query + strips[i].rows - strips[from].query;
      const int64_t at = (query - base) * stride + begin, to = static_cast<int64_t>(begin) * width;
      product<true>(g.weights + at, stride, 1, {g.grad + query * g.grad_stride, g.grad_stride},
                    depth, end - begin, width, 1.0f, g.dv + to, width);
      product<true>(g.dscores + at, stride, 1, {head.q + query * head.q_stride, head.q_stride},
                    depth, end - begin, width, head.scale, g.dk + to, width);
    }
  }
}

inline void causal_backward(const CausalHead& head, const CausalGradient& g) {
  const int width = padded(head.head_dim), stride = padded(head.keys);
  for (int t = 0; t < head.tokens;) {
    Strip strips[kStrips];
    int count = 0;
    for (const int base = t; count < kStrips && t < head.tokens; ++count) {
      const Strip strip = strips[count] = strip_at(head, t);
      float* weights = g.weights + static_cast<int64_t>(t - base) * stride;
      float* dscores = g.dscores + static_cast<int64_t>(t - base) * stride;
      strip_scores(strip, head.q + t * head.q_stride, head.q_stride, head.k_panels, head.head_dim,
                   head.scale, weights, stride);
      strip_scores(strip, g.grad + t * g.grad_stride, g.grad_stride, head.v_panels, head.head_dim,
                   1.0f, dscores, stride);
      for (int r = 0; r < strip.rows; ++r, ++t) {
        gradient_row(strip, interval_of(head, t), g.lse[t], weights + r * stride,
                     dscores + r * stride);
      }
      const int64_t first = strip.seen.begin;
      product(dscores + first, 1, stride, {head.k + first * width, width},
              strip.seen.end - strip.seen.begin, strip.rows, width, head.scale,
              g.dq + strip.query * g.dq_stride, g.dq_stride);
    }
    causal_of_keys(head, g, strips, count);
  }
}

constexpr CausalLoops kCausalHere = {causal_panels, causal_are_finite, causal_forward,
                                     causal_backward};

}  // namespace
}  // namespace bdk
