// Convolutions of 3 x 3 pixels over channels-last maps, float32, one function per instruction set.
//
// In a map with a border of zeros the pixels that a row of the filter meets lie side by side, so a
// convolution is three linear layers of 3 C channels, whose rows of x overlap: pixel by pixel for
// each row of the filter. Some rows of maps at a time are copied between borders, so that all
// weights find them in the first-level cache.
#pragma once

#include "cpu/common/panels.h"

namespace bdk {

struct Conv3x3 {
  const float* x;               // [images, height, width, channels]
  const float* weight;          // [features / kPanel, 9 channels, kPanel]
  const float* bias_or_null;    // [features]
  const float* addend_or_null;  // like y
  float* y;  // [images, height, width, features], or larger by `upscale` with fewer features
  int64_t height, width, channels, features;
  int64_t upscale;  // side of the square of pixels that the features of a pixel go to
  int64_t at_once;  // rows of maps that are copied at a time
};

struct Conv3x3Loops {
  // Rows [begin, end) of all maps; bordered: memory for rows at once.
  void (*rows)(const Conv3x3& conv, int64_t begin, int64_t end, float* bordered);
};

extern const Conv3x3Loops kConv3x3Avx2, kConv3x3Avx512;

namespace {  // compiled anew for each instruction set

// Rows of maps between their borders, from row `begin` on.
struct BorderedRows {
  const Conv3x3& conv;
  const int64_t begin;
  float* const at;

  int64_t floats() const { return (conv.width + 2) * conv.channels; }

  // The row above row `row`.
  float* above(int64_t row) const {
    return at + (row - begin + 2 * (row / conv.height - begin / conv.height)) * floats();
  }

  // Copies what the filter meets at rows [begin, end).
  void fill(int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = row % conv.height;
      if (row == begin || y == 0) copy(above(row), row - 1, y > 0);
      copy(above(row) + floats(), row, true);
      if (row + 1 == end || y + 1 == conv.height) {
        copy(above(row) + 2 * floats(), row + 1, y + 1 < conv.height);
      }
    }
  }

  void copy(float* to, int64_t row, bool exists) const {
    const size_t pixel = sizeof(float) * static_cast<size_t>(conv.channels);
    const size_t pixels = pixel * static_cast<size_t>(conv.width);
    if (!exists) {
      memset(to, 0, pixels + 2 * pixel);
      return;
    }
    memset(to, 0, pixel);
    memcpy(to + conv.channels, conv.x + row * conv.width * conv.channels, pixels);
    memset(to + (conv.width + 1) * conv.channels, 0, pixel);
  }
};

// Row `row` as a linear layer: what row `of_filter` of the filter adds to the features that go to
// pixel `spread` of the square.
inline PanelLinear layer_of(const Conv3x3& conv, const BorderedRows& bordered, int64_t row,
                            int64_t of_filter, int64_t spread) {
  const int64_t side = conv.upscale, features = conv.features / (side * side);
  const int64_t dy = spread / side, dx = spread % side;
  const int64_t pixel = (row * side + dy) * conv.width * side + dx;
  // A tile adds the first channel and feature that it takes to these.
  const int64_t to_x = of_filter * (bordered.floats() - 3 * conv.channels);
  const int64_t to_y = (pixel - spread) * features;
  return {bordered.above(row) + to_x,
          conv.channels,
          conv.weight,
          conv.bias_or_null,
          conv.y + to_y,
          side * features,
          9 * conv.channels,
          conv.addend_or_null == nullptr ? nullptr : conv.addend_or_null + to_y};
}

inline void conv3x3_some_rows(const Conv3x3& conv, const BorderedRows& bordered, int64_t end) {
  const int64_t spreads = conv.upscale * conv.upscale;
  const int64_t panels = conv.features / kPanel / spreads, channels = 3 * conv.channels;
  for (int64_t spread = 0; spread < spreads; ++spread) {
    for (int64_t of_filter = 0; of_filter < 3; ++of_filter) {
      for (int64_t c = 0; c < channels; c += kBlockChannels) {
        const int64_t from = of_filter * channels + c;
        const int64_t to = of_filter * channels + least(c + kBlockChannels, channels);
        for (int64_t row = bordered.begin; row < end; ++row) {
          block_panels(layer_of(conv, bordered, row, of_filter, spread), spread * panels,
                       (spread + 1) * panels, 0, conv.width, from, to);
        }
      }
    }
  }
}

inline void conv3x3_rows(const Conv3x3& conv, int64_t begin, int64_t end, float* bordered) {
  for (; begin < end; begin += conv.at_once) {
    const BorderedRows rows = {conv, begin, bordered};
    const int64_t some = least(begin + conv.at_once, end);
    rows.fill(some);
    conv3x3_some_rows(conv, rows, some);
  }
}

}  // namespace
}  // namespace bdk
