// The loops of lfq_entropy, one set per instruction set, on tiles of tokens.
//
// The bits of a code are independent, so that p(code) = p(low half) p(high half). A tile's
// probabilities of all half codes are two small matrices, and what is needed are their products:
// high^T low, summed over the tiles, is the distribution of the codes; high times the gradient of
// that distribution, and low times its transpose, give the gradient of the bits.
#pragma once

#include "cpu/common/rows.h"
#include "cpu/common/vectors.h"

namespace bdk {

constexpr int kEntropyTile = 32;      // tokens
constexpr int kEntropyMostBits = 16;  // of a code
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
  // of_p: [groups or 1, high, low], of_p_transposed: [groups or 1, low, high]; sample_share: the
  // gradient of one bit's entropy; of_x: [tokens, groups, bits].
  void (*backward)(const EntropyCodes& codes, int64_t begin, int64_t end, const float* of_p,
                   const float* of_p_transposed, float sample_share, float* of_x);
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
  float logit[kEntropyTile * kEntropyMostBits];
  float power[kEntropyTile * kEntropyMostBits];
  float one[kEntropyTile * kEntropyMostBits];
  float zero[kEntropyTile * kEntropyMostBits];
  float low[kEntropyTile << (kEntropyMostBits / 2)];   // [kEntropyTile, widths.low]
  float high[kEntropyTile << (kEntropyMostBits / 2)];  // [kEntropyTile, widths.high]
};

// Probabilities of all codes of `bits` bits; bit i has the weight 2^i.
inline void half_codes(const float* one, const float* zero, int bits, int width, float* p) {
  p[0] = 1.0f;
  for (int i = 0; i < bits; ++i) {
    const int half = 1 << i;
    const float of_one = one[i], of_zero = zero[i];
    for (int j = 0; j < half; ++j) {
      p[half + j] = p[j] * of_one;
      p[j] *= of_zero;
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
    size = size > 87.0f ? 87.0f : size;  // the bit is decided; and infinity times 0 is none
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
    const float of_odds = fabsf(tile.logit[i]) * (power / (1.0f + power));
    sum += static_cast<double>(log1p_series(power)) + static_cast<double>(of_odds);
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

// of_code: u(c) of every code c; writes, for every bit, the sum of u over the codes that have it,
// and returns the sum over all. The codes are folded, the highest bit first.
inline float bit_sums(float* of_code, int bits, float* ones) {
  for (int i = bits - 1; i >= 0; --i) {
    const int half = 1 << i;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < half; ++j) {
      sum += of_code[half + j];
      of_code[j] += of_code[half + j];
    }
    ones[i] = sum;
  }
  return of_code[0];
}

// of_logit = sum over the codes c of u(c) (bit of c - P(bit = 1)), u(c) = p(c) dL/dp(c).
inline void half_gradient(const float* p, float* of_p, int half_bits, const float* one,
                          float* of_logit) {
  const int codes = 1 << half_bits;
#pragma omp simd
  for (int c = 0; c < codes; ++c) of_p[c] *= p[c];
  const float total = bit_sums(of_p, half_bits, of_logit);
  for (int i = 0; i < half_bits; ++i) of_logit[i] -= one[i] * total;
}

void lfq_entropy_backward(const EntropyCodes& codes, int64_t begin, int64_t end, const float* of_p,
                          const float* of_p_transposed, float sample_share, float* of_x) {
  const EntropyWidths w = entropy_widths(codes.bits);
  const int bits = codes.bits;
  EntropyTile tile;
  float of_low[kEntropyTile << (kEntropyMostBits / 2)];
  float of_high[kEntropyTile << (kEntropyMostBits / 2)];
  for (int64_t group = 0; group < codes.groups; ++group) {
    for (int64_t first = begin; first < end; first += kEntropyTile) {
      const int count = static_cast<int>(end - first < kEntropyTile ? end - first : kEntropyTile);
      load_tile(codes, w, group, first, count, tile);
      product<false>(tile.high, 1, w.high, of_p, w.high, kEntropyTile, w.low, of_low);
      product<false>(tile.low, 1, w.low, of_p_transposed, w.low, kEntropyTile, w.high, of_high);
      for (int t = 0; t < count; ++t) {
        const float* logit = tile.logit + t * bits;
        const float* one = tile.one + t * bits;
        const float* zero = tile.zero + t * bits;
        float of_logit[kEntropyMostBits];
        half_gradient(tile.low + t * w.low, of_low + t * w.low, w.low_bits, one, of_logit);
        half_gradient(tile.high + t * w.high, of_high + t * w.high, w.high_bits, one + w.low_bits,
                      of_logit + w.low_bits);
        float* to = of_x + ((first + t) * codes.groups + group) * bits;
        for (int i = 0; i < bits; ++i) {
          const float both = one[i] * zero[i];
          // A bit that is decided has no gradient, but for NaN; what rounding leaves would be
          // scaled up.
          const float factor = both == 0.0f ? 0.0f : codes.scale;
          to[i] = factor * (of_logit[i] - sample_share * logit[i] * both);
        }
      }
    }
    if (codes.per_group) of_p += w.high * w.low;
    if (codes.per_group) of_p_transposed += w.high * w.low;
  }
}

}  // namespace

}  // namespace bdk
