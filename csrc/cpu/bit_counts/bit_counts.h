// The inner loop of bit_counts, one per instruction set.
//
// Bytes are counted column by column with carry-save adders, after R. Harley and D. Seal as in
// W. Mula, N. Kurz, D. Lemire: Faster population counts using AVX2 instructions (2018), but bit by
// bit: sixteen rows become one vector of sixteens, and only that is spread out into counters.
#pragma once

#include <stdint.h>
#include <string.h>

namespace bdk {

// Adds the counts of `rows` rows of one column, `width` = the vector's bytes wide, one row every
// `stride` bytes, to counts[8 * byte + bit].
using CountColumn = void (*)(const uint8_t* data, int64_t rows, int64_t stride, uint32_t* counts);

void count_column_avx2(const uint8_t* data, int64_t rows, int64_t stride, uint32_t* counts);
void count_column_avx512(const uint8_t* data, int64_t rows, int64_t stride, uint32_t* counts);

// Rows of one call: 255 sixteens fill a byte.
constexpr int64_t kMaxRows = 255 * 16;

// Adds two vectors of bits to `low`; the carry goes to `high`.
template <class Vector>
static inline void add_two(Vector& high, Vector& low, Vector a, Vector b) {
  const Vector half = low ^ a;
  high = (low & a) | (half & b);
  low = half ^ b;
}

template <class Vector>
static inline Vector load_vector(const uint8_t* at) {
  Vector v;
  memcpy(&v, at, sizeof v);
  return v;
}

template <class Vector>
static inline void add_bits(const Vector& bits, uint32_t weight, uint32_t* counts) {
  uint8_t bytes[sizeof(Vector)];
  memcpy(bytes, &bits, sizeof bytes);
  for (size_t k = 0; k < sizeof bytes; ++k) {
    for (int j = 0; j < 8; ++j) counts[8 * k + j] += weight * ((bytes[k] >> j) & 1);
  }
}

// Vector: an unsigned integer or a GCC vector of uint64_t.
template <class Vector>
static inline void count_column(const uint8_t* data, int64_t rows, int64_t stride,
                                uint32_t* counts) {
  constexpr uint64_t kLowBits = 0x0101010101010101u;
  Vector ones{}, twos{}, fours{}, eights{};
  Vector bytes[8] = {};  // counters of a byte each for bit j
  int64_t r = 0;
  for (; r + 16 <= rows; r += 16, data += 16 * stride) {
    Vector twos_a, twos_b, fours_a, fours_b, eights_a, eights_b, sixteens;
    const auto row = [&](int i) { return load_vector<Vector>(data + i * stride); };
    add_two(twos_a, ones, row(0), row(1));
    add_two(twos_b, ones, row(2), row(3));
    add_two(fours_a, twos, twos_a, twos_b);
    add_two(twos_a, ones, row(4), row(5));
    add_two(twos_b, ones, row(6), row(7));
    add_two(fours_b, twos, twos_a, twos_b);
    add_two(eights_a, fours, fours_a, fours_b);
    add_two(twos_a, ones, row(8), row(9));
    add_two(twos_b, ones, row(10), row(11));
    add_two(fours_a, twos, twos_a, twos_b);
    add_two(twos_a, ones, row(12), row(13));
    add_two(twos_b, ones, row(14), row(15));
    add_two(fours_b, twos, twos_a, twos_b);
    add_two(eights_b, fours, fours_a, fours_b);
    add_two(sixteens, eights, eights_a, eights_b);
    for (int j = 0; j < 8; ++j) bytes[j] += (sixteens >> j) & kLowBits;
  }
  for (; r < rows; ++r, data += stride) add_bits(load_vector<Vector>(data), 1, counts);
  add_bits(ones, 1, counts);
  add_bits(twos, 2, counts);
  add_bits(fours, 4, counts);
  add_bits(eights, 8, counts);
  for (int j = 0; j < 8; ++j) {
    uint8_t sums[sizeof(Vector)];
    memcpy(sums, &bytes[j], sizeof sums);
    for (size_t k = 0; k < sizeof sums; ++k) counts[8 * k + j] += 16u * sums[k];
  }
}

}  // namespace bdk
