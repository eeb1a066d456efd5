// Linear layers with an int8 weight in panels, whose features have scales.
//
// Every tile widens its weights in registers. Keeping them widened for the next tiles gains
// nothing, even for hundreds of rows, since it takes four times the cache. The sums are those of
// panels of float32; the last of them is multiplied by the scale.
#pragma once

#include "cpu/common/panels.h"

namespace bdk {

// The scales of a panel, float32, take the bytes of so many channels behind its last one.
constexpr int64_t kScaleChannels = sizeof(float);

struct Int8Linear {
  const float* x;  // [.., channels], one row every `x_stride`
  int64_t x_stride;
  const int8_t* weight;       // [features / kPanel, channels + kScaleChannels, kPanel]
  const float* bias_or_null;  // [features]
  float* y;                   // [.., features], one row every `y_stride`
  int64_t y_stride;
  int64_t channels;
};

struct Int8LinearLoops {
  // Panels [begin, end) of rows [row, row_end).
  void (*panels)(const Int8Linear& linear, int64_t begin, int64_t end, int64_t row,
                 int64_t row_end);
};

extern const Int8LinearLoops kInt8LinearAvx2, kInt8LinearAvx512;

namespace {  // compiled anew for each instruction set

// Bytes by which weights are prefetched: the processor itself fetches too little ahead where few
// panels are read at a time.
constexpr int kInt8Ahead = 2048;

template <int kRows, int kPanels>
inline void int8_tile(const Int8Linear& linear, int64_t row, int64_t panel) {
  constexpr int kVectors = kPanels * kPanelVectors;
  const int64_t x_stride = linear.x_stride, channels = linear.channels;
  const int64_t panel_stride = (channels + kScaleChannels) * kPanel, feature = panel * kPanel;
  const int8_t* const weight = linear.weight + panel * panel_stride;
  Spaced<const float, kRows> x(linear.x + row * x_stride, x_stride);
  Spaced<const int8_t, kPanels> w(weight, panel_stride);
  float* const y = linear.y + row * linear.y_stride + feature;
  for (int64_t begin = 0; begin < channels; begin += kSumChannels) {
    Sums<kRows, kPanels> sum;
    const int64_t count = least(kSumChannels, channels - begin);
    multiply<kRows, kPanels>(x, x_stride, w, panel_stride, count, sum, [&](int64_t c) {
      if (c % (64 / kPanel) != 0) return;  // a cache line holds so many channels
#pragma GCC unroll 6
      for (int i = 0; i < kPanels; ++i) {
        __builtin_prefetch(w.at(i, panel_stride, 3 * panel_stride) + kInt8Ahead);
      }
    });
    repeat<kRows>([&](auto r) BDK_INLINE {
      float* const of_row = y + r * linear.y_stride;
      repeat<kVectors>([&](auto v) BDK_INLINE {
        Vector total = sum[r][v];
        if (begin > 0) total += load_vector(of_row + v * kLanes);
        if (begin + count == channels) {
          Vector scale;
          const int8_t* const scales =
              weight + v / kPanelVectors * panel_stride + channels * kPanel;
          memcpy(&scale, scales + v % kPanelVectors * sizeof scale, sizeof scale);
          total *= scale;
          if (linear.bias_or_null != nullptr) {
            total += load_vector(linear.bias_or_null + feature + v * kLanes);
          }
        }
        memcpy(of_row + v * kLanes, &total, sizeof total);
      });
    });
  }
}

// kRows rows of panels [begin, end).
template <int kRows, int kPanels = tile_panels(kRows)>
inline void int8_tiles(const Int8Linear& linear, int64_t row, int64_t begin, int64_t end) {
  for (; begin + kPanels <= end; begin += kPanels) int8_tile<kRows, kPanels>(linear, row, begin);
  if constexpr (kPanels > 1) int8_tiles<kRows, kPanels - 1>(linear, row, begin, end);
}

using Int8Tiles = void (*)(const Int8Linear&, int64_t, int64_t, int64_t);

template <int... kRows>
inline Int8Tiles int8_tiles_of(int64_t rows, std::integer_sequence<int, kRows...>) {
  constexpr Int8Tiles kTiles[] = {int8_tiles<kRows + 1>...};
  return kTiles[rows - 1];
}

inline void int8_panels(const Int8Linear& linear, int64_t begin, int64_t end, int64_t row,
                        int64_t row_end) {
  const int64_t rows = row_end - row, count = (rows + kMaxTileRows - 1) / kMaxTileRows;
  if (count == 0) return;
  const int64_t group = tile_panels(static_cast<int>((rows + count - 1) / count));
  for (int64_t panel = begin; panel < end; panel += group) {
    const int64_t panel_end = least(panel + group, end);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t top = row + rows * i / count, bottom = row + rows * (i + 1) / count;
      int8_tiles_of(bottom - top, std::make_integer_sequence<int, kMaxTileRows>())(
          linear, top, panel, panel_end);
    }
  }
}

}  // namespace
}  // namespace bdk
