// The inner loop of bit_counts, one per instruction set.
//
// Bytes are counted column by column with carry-save adders, after R. Harley and D. Seal as in
// W. Mula, N. Kurz, D. Lemire: Faster population counts using AVX2 instructions (2018), but bit by
// bit: sixteen lines become one vector of sixteens, and only that is spread out into counters.
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace bdk {

// Bytes of adjacent columns that are counted together: 32 KiB of counts on the stack.
constexpr int64_t kTileBytes = 1024;

// Counts the ones in `bytes` adjacent bytes, a vector to kTileBytes, of `lines` lines, one every
// `stride` bytes. Column c of a vector's width begins at byte c * vector, the last one where it
// ends with the bytes. Writes the count of bit j of byte k of column c to counts[(8 * c + j) *
// vector + k].
using CountColumns = void (*)(const uint8_t* data, int64_t lines, int64_t stride, int64_t bytes,
                              uint32_t* counts);

void count_columns_avx2(const uint8_t* data, int64_t lines, int64_t stride, int64_t bytes,
                        uint32_t* counts);
void count_columns_avx512(const uint8_t* data, int64_t lines, int64_t stride, int64_t bytes,
                          uint32_t* counts);

// Adds two vectors of bits to `low`; the carry goes to `high`.
template <class Vector>
static inline void add_two(Vector& high, Vector& low, Vector a, Vector b) {
  const Vector half = low ^ a;
  high = (low & a) | (half & b);
  low = half ^ b;
}

#ifdef __AVX512F__
typedef uint64_t Vector512 __attribute__((vector_size(64)));

// One instruction for the carry and one for the sum, which GCC does not find.
static inline void add_two(Vector512& high, Vector512& low, Vector512 a, Vector512 b) {
  const __m512i l = (__m512i)low, x = (__m512i)a, y = (__m512i)b;
  high = (Vector512)_mm512_ternarylogic_epi64(l, x, y, 0xE8);
  low = (Vector512)_mm512_ternarylogic_epi64(l, x, y, 0x96);
}
#endif

// counts[k] += weight * bytes[k]. Not inlined: GCC would vectorise across calls, by shuffles.
template <int kBytes>
__attribute__((noinline)) static void add_bytes(const uint8_t* bytes, uint32_t weight,
                                                uint32_t* counts) {
  for (int k = 0; k < kBytes; ++k) counts[k] += weight * bytes[k];
}

// What is counted of one column, for each bit of a vector: so many ones, twos, fours and eights,
// and of sixteens a byte for bit j of every byte.
// Vector: an unsigned integer or a GCC vector of uint64_t.
template <class Vector>
struct ColumnCounts {
  static constexpr uint64_t kLowBits = 0x0101010101010101u;
  static constexpr int kMaxSixteens = 255;

  Vector ones, twos, fours, eights, sixteens[8];

  // line(i): line i of sixteen.
  template <class Line>
  void add(const Line& line) {
    Vector twos_a, twos_b, fours_a, fours_b, eights_a, eights_b, up;
    add_two(twos_a, ones, line(0), line(1));
    add_two(twos_b, ones, line(2), line(3));
    add_two(fours_a, twos, twos_a, twos_b);
    add_two(twos_a, ones, line(4), line(5));
    add_two(twos_b, ones, line(6), line(7));
    add_two(fours_b, twos, twos_a, twos_b);
    add_two(eights_a, fours, fours_a, fours_b);
    add_two(twos_a, ones, line(8), line(9));
    add_two(twos_b, ones, line(10), line(11));
    add_two(fours_a, twos, twos_a, twos_b);
    add_two(twos_a, ones, line(12), line(13));
    add_two(twos_b, ones, line(14), line(15));
    add_two(fours_b, twos, twos_a, twos_b);
    add_two(eights_b, fours, fours_a, fours_b);
    add_two(up, eights, eights_a, eights_b);
    for (int j = 0; j < 8; ++j) sixteens[j] += (up >> j) & kLowBits;
  }

  void flush_sixteens(uint32_t* counts) {
    uint8_t bytes[8][sizeof(Vector)];
    memcpy(bytes, sixteens, sizeof bytes);
    memset(sixteens, 0, sizeof sixteens);
    add_bytes<sizeof bytes>(bytes[0], 16, counts);
  }

  void flush_rest(uint32_t* counts) const {
    uint8_t bytes[8][sizeof(Vector)];
    for (int j = 0; j < 8; ++j) {
      const Vector sum = ((ones >> j) & kLowBits) + (((twos >> j) & kLowBits) << 1) +
                         (((fours >> j) & kLowBits) << 2) + (((eights >> j) & kLowBits) << 3);
      memcpy(bytes[j], &sum, sizeof sum);
    }
    add_bytes<sizeof bytes>(bytes[0], 1, counts);
  }
};

template <class Vector>
static inline void count_columns(const uint8_t* data, int64_t lines, int64_t stride, int64_t bytes,
                                 uint32_t* counts) {
  constexpr int64_t kWidth = sizeof(Vector);
  using Column = ColumnCounts<Vector>;
  const int64_t columns = (bytes + kWidth - 1) / kWidth;
  const auto start = [&](int64_t c) {
    return c * kWidth < bytes - kWidth ? c * kWidth : bytes - kWidth;
  };
  Column column[kTileBytes / kWidth];
  memset(column, 0, sizeof(Column) * static_cast<size_t>(columns));
  memset(counts, 0, sizeof(uint32_t) * static_cast<size_t>(8 * kWidth * columns));
  const auto load = [&](const uint8_t* at) {
    Vector v;
    memcpy(&v, at, sizeof v);
    return v;
  };
  // Four lines from each quarter of the data at a time: the processor prefetches each quarter as a
  // stream of its own, so one core keeps more cache lines in flight.
  const int64_t trips = lines / 16, quarter = 4 * trips * stride;
  // Cache lines of one column are read again for the next one, soon.
  const int64_t block = columns == 1 ? Column::kMaxSixteens : Column::kMaxSixteens / 51;
  int64_t unflushed = 0;
  for (int64_t first = 0; first < trips; first += block) {
    const int64_t some = trips - first < block ? trips - first : block;
    for (int64_t c = 0; c < columns; ++c) {
      Column local = column[c];
      const uint8_t* at = data + start(c) + 4 * first * stride;
      for (int64_t trip = 0; trip < some; ++trip, at += 4 * stride) {
        local.add([&](int i) { return load(at + (i % 4) * quarter + (i / 4) * stride); });
      }
      column[c] = local;
    }
    unflushed += some;
    if (unflushed < Column::kMaxSixteens && first + some < trips) continue;
    unflushed = 0;
    for (int64_t c = 0; c < columns; ++c) column[c].flush_sixteens(counts + 8 * kWidth * c);
  }
  const int64_t rest = lines - 16 * trips;
  data += 4 * quarter;
  for (int64_t c = 0; c < columns; ++c, counts += 8 * kWidth) {
    if (rest > 0) {
      const uint8_t* at = data + start(c);
      column[c].add([&](int i) { return i < rest ? load(at + i * stride) : Vector{}; });
      column[c].flush_sixteens(counts);
    }
    column[c].flush_rest(counts);
  }
}

}  // namespace bdk
