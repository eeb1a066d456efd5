// Matrix products of attention, float32: tiles of at most a few dozen tokens and one head, with the
// vectors of the instruction set that the including file is compiled for.
//
// Sums over tokens are products of a tall and a flat matrix, c[m, n] = sum over k of a(k, m) b[k,
// n], with vectors along n. So are sums over channels, where 16 tokens can be transposed to stand
// side by side; for the others they are dot products of rows, with vectors along the channels.
#pragma once

#include <type_traits>
#include <utility>

#include "cpu/common/vectors.h"

namespace bdk {

constexpr int kPad = 16;           // the number of columns is a multiple of this
constexpr int kMaxChannels = 128;  // of a head

// Rows of values, one every `stride`.
template <class T>
struct RowsOf {
  const T* at;
  int64_t stride;
};
using Matrix = RowsOf<float>;

namespace {  // the vectors differ between the files that include this

template <int kValue>
using Number = std::integral_constant<int, kValue>;

constexpr int kVectors = kPad / kLanes;
constexpr int kMinRows = 8;  // of a, from which transposing b pays

inline int padded(int columns) { return (columns + kPad - 1) / kPad * kPad; }

// kRows rows of c, kPads times kPad columns; kAdd: adds to c. The columns of b from kPad on follow
// after `pad_step` values.
template <int kRows, int kPads, bool kAdd, class T>
inline void product_block(const float* a, int64_t a_step, int64_t a_row, RowsOf<T> b,
                          int64_t pad_step, int depth, float factor, float* c, int64_t c_stride) {
  constexpr int kAcross = kPads * kVectors;
  Vector sum[kRows][kAcross] = {};
  for (int k = 0; k < depth; ++k) {
    Vector v[kAcross];
    repeat<kAcross>([&](auto i) BDK_INLINE {
      v[i] = load_vector(b.at + k * b.stride + i / kVectors * pad_step + i % kVectors * kLanes);
    });
    repeat<kRows>([&](auto r) BDK_INLINE {
      const Vector value = broadcast(a[k * a_step + r * a_row]);
      repeat<kAcross>([&](auto i) BDK_INLINE {
        if constexpr (kRows > 1 && kAcross > 1) {
          multiply_add(sum[r][i], value, v[i]);
        } else {  // the compiler may read a factor where it is used
          sum[r][i] += value * v[i];
        }
      });
    });
  }
  repeat<kRows>([&](auto r) BDK_INLINE {
    repeat<kAcross>([&](auto i) BDK_INLINE {
      float* const to = c + r * c_stride + i * kLanes;
      Vector scaled = factor * sum[r][i];
      if constexpr (kAdd) scaled += load_vector(to);
      memcpy(to, &scaled, sizeof scaled);
    });
  });
}

// c [rows, columns] = factor times the sum over k of a(k, row) b[k, column], where a(k, row) is
// a[k * a_step + row * a_row]; `columns` is a multiple of kPad, and b has kPad of them side by
// side every `pad_step` values. kAdd: it is added to c.
template <bool kAdd = false, class T = float>
inline void product(const float* a, int64_t a_step, int64_t a_row, RowsOf<T> b, int depth, int rows,
                    int columns, float factor, float* c, int64_t c_stride,
                    int64_t pad_step = kPad) {
  constexpr int kRows = kLanes == 4 ? 2 : kLanes == 8 ? 6 : 8;
  constexpr int kPads = kLanes == 16 ? 2 : 1;
  constexpr int kWide = kLanes == 4 ? 1 : 4;  // for one row, whose sums wait for themselves
  int column = 0;
  const auto take = [&](auto some, auto pads, int row) {
    product_block<some, pads, kAdd>(a + row * a_row, a_step, a_row,
                                    RowsOf<T>{b.at + column / kPad * pad_step, b.stride}, pad_step,
                                    depth, factor, c + row * c_stride + column, c_stride);
  };
  const auto take_rows = [&](auto pads) {
    int row = 0;
    for (; row + kRows <= rows; row += kRows) take(Number<kRows>(), pads, row);
    if (kRows > 4 && row + 4 <= rows) take(Number<4>(), pads, std::exchange(row, row + 4));
    if (kRows > 2 && row + 2 <= rows) take(Number<2>(), pads, std::exchange(row, row + 2));
    if (row < rows) take(Number<1>(), pads, row);
  };
  for (; rows == 1 && column + kWide * kPad <= columns; column += kWide * kPad) {
    take(Number<1>(), Number<kWide>(), 0);
  }
  for (; column + kPads * kPad <= columns; column += kPads * kPad) take_rows(Number<kPads>());
  for (; column < columns; column += kPad) take_rows(Number<1>());
}

// Sums of the lanes of eight vectors.
inline void totals_of_eight(const Vector* v, float* total) {
#ifdef __AVX2__
  __m256 x[8];
  for (int i = 0; i < 8; ++i) x[i] = eight_lanes(v[i]);
  const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
  const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
  _mm256_storeu_ps(total, _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                                        _mm256_permute2f128_ps(low, high, 0x31)));
#else
  for (int i = 0; i < 8; ++i) total[i] = (v[i][0] + v[i][1]) + (v[i][2] + v[i][3]);
#endif
}

template <int kRows, int kColumns, class T>
inline void dot_block(Matrix a, RowsOf<T> b, int depth, float factor, float* c, int64_t c_stride) {
  static_assert(kRows * kColumns <= 8, "totals_of_eight adds them up");
  Vector sum[8] = {};
  int k = 0;
  for (; k + kLanes <= depth; k += kLanes) {
    Vector x[kRows], y[kColumns];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) memcpy(&x[r], a.at + r * a.stride + k, sizeof x[r]);
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) {
      y[j] = load_vector(b.at + j * b.stride + k);
#ifdef __AVX2__
      __asm__("" : "+x"(y[j]));  // stays in a register: GCC would load it again in each product
#endif
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sum[r * kColumns + j] += x[r] * y[j];
    }
  }
  float total[8];
  totals_of_eight(sum, total);
  for (; k < depth; ++k) {
    for (int r = 0; r < kRows; ++r) {
      for (int j = 0; j < kColumns; ++j) {
        total[r * kColumns + j] +=
            a.at[r * a.stride + k] * static_cast<float>(b.at[j * b.stride + k]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) c[r * c_stride + j] = factor * total[r * kColumns + j];
  }
}

#ifdef __AVX2__
// to[column * kPad + row] = from[row * stride + column] for eight rows and columns.
inline void transpose_eight(const float* from, int64_t stride, float* to) {
  __m256 pair[8], four[8];
#pragma GCC unroll 4
  for (int r = 0; r < 8; r += 2) {
    const __m256 x = _mm256_loadu_ps(from + r * stride);
    const __m256 y = _mm256_loadu_ps(from + (r + 1) * stride);
    pair[r] = _mm256_unpacklo_ps(x, y);  // columns 0, 1 and 4, 5 of two rows
    pair[r + 1] = _mm256_unpackhi_ps(x, y);
  }
#pragma GCC unroll 2
  for (int r = 0; r < 8; r += 4) {  // columns c and c + 4 of four rows
    four[r] = _mm256_shuffle_ps(pair[r], pair[r + 2], 0x44);
    four[r + 1] = _mm256_shuffle_ps(pair[r], pair[r + 2], 0xEE);
    four[r + 2] = _mm256_shuffle_ps(pair[r + 1], pair[r + 3], 0x44);
    four[r + 3] = _mm256_shuffle_ps(pair[r + 1], pair[r + 3], 0xEE);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    _mm256_storeu_ps(to + c * kPad, _mm256_permute2f128_ps(four[c], four[c + 4], 0x20));
    _mm256_storeu_ps(to + (c + 4) * kPad, _mm256_permute2f128_ps(four[c], four[c + 4], 0x31));
  }
}
#endif

// to [columns, kPad]: kPad rows of m side by side.
inline void transpose(Matrix m, int columns, float* to) {
  int c = 0;
#ifdef __AVX2__
  for (; c + 8 <= columns; c += 8) {
    for (int r = 0; r < kPad; r += 8) {
      transpose_eight(m.at + r * m.stride + c, m.stride, to + c * kPad + r);
    }
  }
#endif
  for (; c < columns; ++c) {
    for (int r = 0; r < kPad; ++r) to[c * kPad + r] = m.at[r * m.stride + c];
  }
}

// c [rows, columns] = factor times the dot products of the rows of a and those of b.
template <class T = float>
inline void dots(Matrix a, int rows, RowsOf<T> b, int columns, int head_dim, float factor,
                 float* c) {
  const auto row = [](auto m, int r) { return decltype(m){m.at + r * m.stride, m.stride}; };
  int j = 0;
  if constexpr (std::is_same_v<T, float>) {
    alignas(64) float side_by_side[kMaxChannels * kPad];
    for (; rows >= kMinRows && j + kPad <= columns; j += kPad) {
      transpose(row(b, j), head_dim, side_by_side);
      product(a.at, 1, a.stride, Matrix{side_by_side, kPad}, head_dim, rows, kPad, factor, c + j,
              columns);
    }
  }
  for (; j + 4 <= columns; j += 4) {  // rows of b stay in the nearest cache while a's pass by
    int i = 0;
    for (; i + 2 <= rows; i += 2) {
      dot_block<2, 4>(row(a, i), row(b, j), head_dim, factor, c + i * columns + j, columns);
    }
    if (i < rows) {
      dot_block<1, 4>(row(a, i), row(b, j), head_dim, factor, c + i * columns + j, columns);
    }
  }
  for (; j < columns; ++j) {
    for (int i = 0; i < rows; ++i) {
      dot_block<1, 1>(row(a, i), row(b, j), head_dim, factor, c + i * columns + j, columns);
    }
  }
}

// [rows, head_dim] padded to a multiple of kPad columns; the matrix itself if it needs no padding
// and has few rows. Rows of a wide tensor map to the same set of the first-level cache, which holds
// eight lines.
inline Matrix close_together(Matrix m, int rows, int head_dim, float* buffer) {
  constexpr int kWays = 8;
  const int width = padded(head_dim);
  if (width == head_dim && rows <= kWays) return m;
  for (int t = 0; t < rows; ++t) {
    memcpy(buffer + t * width, m.at + t * m.stride, sizeof(float) * head_dim);
    for (int d = head_dim; d < width; ++d) buffer[t * width + d] = 0.0f;
  }
  return {buffer, width};
}

}  // namespace
}  // namespace bdk
