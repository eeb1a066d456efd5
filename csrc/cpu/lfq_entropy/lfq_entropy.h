// The loops of lfq_entropy, one set per instruction set, on tiles of tokens.
//
// The bits of a code are independent, so p(code) = p(low half) p(high half). The probabilities of
// all half codes of a tile are two small matrices, and everything is a product of these: high^T
// low, summed over the tiles, is the distribution of the codes; high times the gradient of that
// distribution, and low times its transpose, give the gradient of the bits.
#pragma once

#include "cpu/common/rows.h"
#include "cpu/common/vectors.h"

namespace bdk {

constexpr int kEntropyTile = 32;     // tokens
constexpr int kEntropyMaxBits = 16;  // of a code
// Half codes are padded with zeros to a multiple of this many, so that products have no tails.
constexpr int kEntropyPad = 16;

struct EntropyCodes {
  const float* x;  // [tokens, groups, bits], one token every x_stride
  int64_t x_stride;
  int64_t groups;
  int bits;
  float scale;  // log-odds of a bit = scale x
  bool per_group;
};

// Half codes of the low bits and of the high bits, with padding.
struct EntropyWidths {
  int low_bits, high_bits;
  int low, high;
};

static inline EntropyWidths entropy_widths(int bits) {
  const int low_bits = (bits + 1) / 2;
  const int high_bits = bits / 2;
  const auto padded = [](int b) { return (1 << b) < kEntropyPad ? kEntropyPad : 1 << b; };
  return {low_bits, high_bits, padded(low_bits), padded(high_bits)};
}

struct LfqEntropyLoops {
  // Adds the distribution of tokens begin .. end - 1 to sums [groups or 1, high, low], and returns
  // the sum of the entropies of their bits.
  double (*forward)(const EntropyCodes& codes, int64_t begin, int64_t end, float* sums);
  // grad_p: [groups or 1, high, low], grad_p_transposed: [groups or 1, low, high]; sample_share:
  // the gradient of one bit's entropy; grad_x: [tokens, groups, bits].
  void (*backward)(const EntropyCodes& codes, int64_t begin, int64_t end, const float* grad_p,
                   const float* grad_p_transposed, float sample_share, float* grad_x);
};

extern const LfqEntropyLoops kLfqEntropyAvx2, kLfqEntropyAvx512;

namespace {  // the vectors differ between the files that include this

constexpr int kRows = kLanes / 2;
constexpr int kVectors = kEntropyPad / kLanes;

inline Vector load(const float* values) {
  Vector v;
  memcpy(&v, values, sizeof v);
  return v;
}

inline void store(float* values, Vector v) { memcpy(values, &v, sizeof v); }

// c [rows, columns] (+)= sum over k of a(k, row) b(k, column), where a(k, row) is
// a[k * a_step + row * a_row]; `rows` is a multiple of kRows and `columns` of kEntropyPad.
template <bool kAdd>
inline void product(const float* a, int a_step, int a_row, const float* b, int depth, int rows,
                    int columns, float* c) {
  for (int row = 0; row < rows; row += kRows) {
    for (int column = 0; column < columns; column += kEntropyPad) {
      Vector sum[kRows][kVectors] = {};
      const float* from_a = a + row * a_row;
      const float* from_b = b + column;
      for (int k = 0; k < depth; ++k, from_a += a_step, from_b += columns) {
        Vector v[kVectors];
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i) v[i] = load(from_b + i * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
          for (int i = 0; i < kVectors; ++i) sum[r][i] += from_a[r * a_row] * v[i];
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i) {
          float* to = c + (row + r) * columns + column + i * kLanes;
          store(to, kAdd ? load(to) + sum[r][i] : sum[r][i]);
        }
      }
    }
  }
}

// One group of a tile.
struct EntropyTile {
  // [kEntropyTile, bits]: log-odds l, exp(-|l|), and the probabilities of 1 and of 0, each to its
  // own relative accuracy.
  float logit[kEntropyTile * kEntropyMaxBits];
  float power[kEntropyTile * kEntropyMaxBits];
  float one[kEntropyTile * kEntropyMaxBits];
  float zero[kEntropyTile * kEntropyMaxBits];
  float low[kEntropyTile << (kEntropyMaxBits / 2)];   // [kEntropyTile, widths.low]
  float high[kEntropyTile << (kEntropyMaxBits / 2)];  // [kEntropyTile, widths.high]
};

// Probabilities of all codes of `bits` bits; bit i has the weight 2^i.
inline void half_codes(const float* one, const float* zero, int bits, int width, float* p) {
  p[0] = 1.0f;
  for (int i = 0; i < bits; ++i) {
    const int half = 1 << i;
    const float p_one = one[i], p_zero = zero[i];
    for (int j = 0; j < half; ++j) {
      p[half + j] = p[j] * p_one;
      p[j] *= p_zero;
    }
  }
  for (int j = 1 << bits; j < width; ++j) p[j] = 0.0f;
}

inline void load_tile(const EntropyCodes& codes, EntropyWidths w, int64_t group, int64_t first,
                      int count, EntropyTile& tile) {
  const int bits = codes.bits;
  for (int t = 0; t < count; ++t) {
    const float* x = codes.x + (first + t) * codes.x_stride + group * bits;
    for (int i = 0; i < bits; ++i) tile.logit[t * bits + i] = x[i] * codes.scale;
  }
  const int values = count * bits;
#pragma omp simd
  for (int i = 0; i < values; ++i) {
    float size = fabsf(tile.logit[i]);
    size = size > 87.0f ? 87.0f : size;  // the bit is certain; avoids infinity times 0
    const float power = size == 87.0f ? 0.0f : exp_approximate(-size);
    tile.logit[i] = copysignf(size, tile.logit[i]);
    const float likely = 1.0f / (1.0f + power);
    const float unlikely = power * likely;
    tile.power[i] = power;
    tile.one[i] = tile.logit[i] > 0.0f ? likely : unlikely;
    tile.zero[i] = tile.logit[i] > 0.0f ? unlikely : likely;
  }
  for (int t = 0; t < count; ++t) {
    const float* one = tile.one + t * bits;
    const float* zero = tile.zero + t * bits;
    half_codes(one, zero, w.low_bits, w.low, tile.low + t * w.low);
    half_codes(one + w.low_bits, zero + w.low_bits, w.high_bits, w.high, tile.high + t * w.high);
  }
  memset(tile.low + count * w.low, 0, sizeof(float) * (kEntropyTile - count) * w.low);
  memset(tile.high + count * w.high, 0, sizeof(float) * (kEntropyTile - count) * w.high);
}

// log(1 + e) for e in [0, 1], as 2 atanh(e / (2 + e)) by its series.
inline float log1p_series(float e) {
  const float z = e / (2.0f + e);
  const float q = z * z;
  float p = 1.0f / 15.0f;
  p = p * q + 1.0f / 13.0f;
  p = p * q + 1.0f / 11.0f;
  p = p * q + 1.0f / 9.0f;
  p = p * q + 1.0f / 7.0f;
  p = p * q + 1.0f / 5.0f;
  p = p * q + 1.0f / 3.0f;
  return 2.0f * z * (p * q + 1.0f);
}

// H = log(1 + e) + |l| e / (1 + e) with e = exp(-|l|): no overflow and no cancellation.
inline double bit_entropies(const EntropyTile& tile, int values) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < values; ++i) {
    const float power = tile.power[i];
    const float odds_term = fabsf(tile.logit[i]) * (power / (1.0f + power));
    sum += static_cast<double>(log1p_series(power)) + static_cast<double>(odds_term);
  }
  return sum;
}

double lfq_entropy_forward(const EntropyCodes& codes, int64_t begin, int64_t end, float* sums) {
  const EntropyWidths w = entropy_widths(codes.bits);
  EntropyTile tile;
  double entropy = 0.0;
  for (int64_t group = 0; group < codes.groups; ++group) {
    for (int64_t first = begin; first < end; first += kEntropyTile) {
      const int count = static_cast<int>(end - first < kEntropyTile ? end - first : kEntropyTile);
      load_tile(codes, w, group, first, count, tile);
      entropy += bit_entropies(tile, count * codes.bits);
      product<true>(tile.high, w.high, 1, tile.low, kEntropyTile, w.high, w.low, sums);
    }
    if (codes.per_group) sums += w.high * w.low;
  }
  return entropy;
}

// u: u(c) for each code c, overwritten. Writes, for each bit, the sum of u over the codes that have
// it, and returns the sum over all. The codes are folded from the highest bit down.
inline float bit_sums(float* u, int bits, float* ones) {
  for (int i = bits - 1; i >= 0; --i) {
    const int half = 1 << i;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < half; ++j) {
      sum += u[half + j];
      u[j] += u[half + j];
    }
    ones[i] = sum;
  }
  return u[0];
}

// grad_logit = sum over the codes c of u(c) (bit of c - P(bit = 1)), u(c) = p(c) dL/dp(c).
inline void half_gradient(const float* p, float* grad_p, int half_bits, const float* one,
                          float* grad_logit) {
  const int codes = 1 << half_bits;
#pragma omp simd
  for (int c = 0; c < codes; ++c) grad_p[c] *= p[c];
  const float total = bit_sums(grad_p, half_bits, grad_logit);
  for (int i = 0; i < half_bits; ++i) grad_logit[i] -= one[i] * total;
}

void lfq_entropy_backward(const EntropyCodes& codes, int64_t begin, int64_t end,
                          const float* grad_p, const float* grad_p_transposed, float sample_share,
                          float* grad_x) {
  const EntropyWidths w = entropy_widths(codes.bits);
  const int bits = codes.bits;
  EntropyTile tile;
  float grad_low[kEntropyTile << (kEntropyMaxBits / 2)];
  float grad_high[kEntropyTile << (kEntropyMaxBits / 2)];
  for (int64_t group = 0; group < codes.groups; ++group) {
    for (int64_t first = begin; first < end; first += kEntropyTile) {
      const int count = static_cast<int>(end - first < kEntropyTile ? end - first : kEntropyTile);
      load_tile(codes, w, group, first, count, tile);
      product<false>(tile.high, 1, w.high, grad_p, w.high, kEntropyTile, w.low, grad_low);
      product<false>(tile.low, 1, w.low, grad_p_transposed, w.low, kEntropyTile, w.high, grad_high);
      for (int t = 0; t < count; ++t) {
        const float* logit = tile.logit + t * bits;
        const float* one = tile.one + t * bits;
        const float* zero = tile.zero + t * bits;
        float grad_logit[kEntropyMaxBits];
        half_gradient(tile.low + t * w.low, grad_low + t * w.low, w.low_bits, one, grad_logit);
        half_gradient(tile.high + t * w.high, grad_high + t * w.high, w.high_bits, one + w.low_bits,
                      grad_logit + w.low_bits);
        float* to = grad_x + ((first + t) * codes.groups + group) * bits;
        for (int i = 0; i < bits; ++i) {
          const float both = one[i] * zero[i];
          // A bit that is decided has no gradient, but for NaN; what rounding leaves would be
          // scaled up.
          const float factor = both == 0.0f ? 0.0f : codes.scale;
          to[i] = factor * (grad_logit[i] - sample_share * logit[i] * both);
        }
      }
    }
    if (codes.per_group) grad_p += w.high * w.low;
    if (codes.per_group) grad_p_transposed += w.high * w.low;
  }
}

}  // namespace

}  // namespace bdk
