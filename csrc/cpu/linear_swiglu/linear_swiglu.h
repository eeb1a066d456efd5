// Linear layers with a weight in panels and the gate of SwiGLU, float32, one function per
// instruction set.
//
// A tile has a panel of the gate's half and that of the same features of the other half. Its sums
// go through a buffer in the first-level cache, and only the product of the two is stored.
#pragma once

#include "cpu/common/panels.h"
#include "cpu/common/rows.h"

namespace bdk {

struct LinearSwigluLoops {
  // Panels [begin, end) of the result, which has `panels` of them, for rows [row, row_end).
  void (*panels)(const PanelLinear& linear, int64_t panels, int64_t begin, int64_t end, int64_t row,
                 int64_t row_end);
};

extern const LinearSwigluLoops kLinearSwigluAvx2, kLinearSwigluAvx512;

namespace {  // compiled anew for each instruction set

constexpr int kMaxPairRows =
    kMaxSums / (2 * kPanelVectors) < 8 ? kMaxSums / (2 * kPanelVectors) : 8;

// kRows rows of a panel of the result.
template <int kRows>
inline void swiglu_tile(const PanelLinear& linear, int64_t panels, int64_t row, int64_t panel) {
  alignas(64) float sums[kRows][2 * kPanel];
  const int64_t size = linear.channels * kPanel;
  PanelLinear pair = {};
  pair.x = linear.x + row * linear.x_stride;
  pair.x_stride = linear.x_stride;
  pair.weight = linear.weight + panel * size;
  pair.panel_stride = panels * size;
  pair.y = sums[0];
  pair.y_stride = 2 * kPanel;
  pair.channels = linear.channels;
  tile<kRows, 2>(pair, 0, 0, 0, linear.channels);
  float bias[2][kPanel] = {};
  if (linear.bias_or_null != nullptr) {
    for (int half = 0; half < 2; ++half) {
      memcpy(bias[half], linear.bias_or_null + (half * panels + panel) * kPanel, sizeof bias[half]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float* const y = linear.y + (row + r) * linear.y_stride + panel * kPanel;
#pragma omp simd
    for (int i = 0; i < kPanel; ++i) {
      y[i] = silu(sums[r][i] + bias[0][i]) * (sums[r][kPanel + i] + bias[1][i]);
    }
  }
}

using PairTile = void (*)(const PanelLinear&, int64_t, int64_t, int64_t);

template <int... kRows>
inline PairTile pair_tile_of(int64_t rows, std::integer_sequence<int, kRows...>) {
  constexpr PairTile kTiles[] = {swiglu_tile<kRows + 1>...};
  return kTiles[rows - 1];
}

inline void linear_swiglu_panels(const PanelLinear& linear, int64_t panels, int64_t begin,
                                 int64_t end, int64_t row, int64_t row_end) {
  const int64_t rows = row_end - row, count = (rows + kMaxPairRows - 1) / kMaxPairRows;
  for (int64_t panel = begin; panel < end; ++panel) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t top = row + rows * i / count, bottom = row + rows * (i + 1) / count;
      pair_tile_of(bottom - top, std::make_integer_sequence<int, kMaxPairRows>())(linear, panels,
                                                                                  top, panel);
    }
  }
}

}  // namespace
}  // namespace bdk
