// Linear layers with a weight in panels of 16 features, float32, one function per instruction set.
//
// The features of a panel are adjacent, so vectors lie along them: a tile of rows and panels is a
// sum of outer products that stays in registers, and no sum goes across the lanes of a vector.
#pragma once

#include <utility>

#include "cpu/common/vectors.h"

namespace bdk {

constexpr int64_t kPanel = 16;  // features

struct PanelLinear {
  const float* x;  // [.., channels], one row every `x_stride`
  int64_t x_stride;
  const float* weight;        // [features / kPanel, channels, kPanel]
  const float* bias_or_null;  // [features]
  float* y;                   // [.., features], one row every `y_stride`
  int64_t y_stride;
  int64_t channels;
  const float* addend_or_null;          // rows like those of y, added to the result
  const float* gate_or_null = nullptr;  // [.., features], times the result before that
  int64_t gate_stride = 0;
  int64_t panel_stride = 0;  // from a panel to the next one; 0 where they are adjacent
};

struct PanelLinearLoops {
  // Panels [begin, end) of rows [row, row_end).
  void (*panels)(const PanelLinear& linear, int64_t begin, int64_t end, int64_t row,
                 int64_t row_end);
};

// All rows and features, on threads.
void panel_product(const PanelLinear& linear, int64_t rows, int64_t features, int threads);

extern const PanelLinearLoops kPanelLinearAvx2, kPanelLinearAvx512;

namespace {  // compiled anew for each instruction set

constexpr int kPanelVectors = kPanel / kLanes;

// Sums of a tile, in registers beside the weights and a value of x.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMaxSums = 24;
#else
constexpr int kMaxSums = 12;
#endif
constexpr int kMaxTileRows = kMaxSums / kPanelVectors < 8 ? kMaxSums / kPanelVectors : 8;
constexpr int kMaxTilePanels = 6;

// Vectors of weights that have registers too.
constexpr int kFewVectors = kLanes == 16 ? kMaxTilePanels : 2;

// Channels of a sum; sums are added to the result, whose error grows with the length of a sum.
constexpr int64_t kSumChannels = 64;

// Channels of a block: of a panel they take 16 KiB of the first-level cache.
constexpr int64_t kBlockChannels = 4 * kSumChannels;

// The same where results stay in the second-level cache between blocks: with AVX-512 those of more
// panels take room beside the rows of x, and shorter runs of a panel are read more slowly.
constexpr int64_t kKeptChannels = kLanes == 16 ? 2 * kSumChannels : kBlockChannels;

// Tiles that share the prefetching of the next block of weights.
constexpr int64_t kPrefetchingTiles = 8;

// From so many tiles on, the rows of a tile are multiplied by a group of panels before the next
// rows: they stay in the first-level cache, and the group takes 128 KiB of the second.
constexpr int64_t kGroupTiles = 16, kGroupPanels = 8;

// Rows that blocks of channels take turns with. Rows whose distance is a power of two, or nearly,
// share few sets of the second-level cache, which hold no more of them.
constexpr int64_t kChunkRows = 256;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr int tile_panels(int rows) {
  const int panels = kMaxSums / (rows * kPanelVectors);
  return panels < kMaxTilePanels ? panels : kMaxTilePanels;
}

// Addresses of rows at equal distances, of which few registers hold all.
template <class T, int kCount>
struct Spaced {
  T* first[(kCount + 3) / 4];

  Spaced(T* base, int64_t stride) {
#pragma GCC unroll 4
    for (int i = 0; i < (kCount + 3) / 4; ++i) first[i] = base + 4 * i * stride;
  }
  T* at(int i, int64_t stride, int64_t three) const {
    const int64_t steps[4] = {0, stride, 2 * stride, three};
    return first[i / 4] + steps[i % 4];
  }
  void advance(int64_t by) {
#pragma GCC unroll 4
    for (int i = 0; i < (kCount + 3) / 4; ++i) first[i] += by;
  }
};

template <int kRows, int kPanels>
using Sums = Vector[kRows][kPanels * kPanelVectors];

// Channels of a turn of the loop below. The threads of a core share the instructions that it can
// begin in a cycle, so those that do not multiply count.
constexpr int kTurnChannels = 4;

// The sums of the products of `count` channels; x and w then are at the channels after them.
// `prefetch` is called with the number of each channel.
template <int kRows, int kPanels, class T, class Prefetch>
BDK_INLINE inline void multiply(Spaced<const float, kRows>& x, int64_t x_stride,
                                Spaced<const T, kPanels>& w, int64_t panel_stride, int64_t count,
                                Sums<kRows, kPanels>& sum, const Prefetch& prefetch) {
  constexpr int kVectors = kPanels * kPanelVectors;
  int64_t x_three = 3 * x_stride, panel_three = 3 * panel_stride;
  const auto multiply_channels = [&](auto channels, int64_t first) BDK_INLINE {
    // Opaque, or the compiler keeps an address for each row, more than there are registers.
    __asm__("" : "+r"(x_stride), "+r"(x_three), "+r"(panel_stride), "+r"(panel_three));
    repeat<channels>([&](auto c) BDK_INLINE {
      Vector weight[kVectors];
      prefetch(first + c);
      repeat<kVectors>([&](auto v) BDK_INLINE {
        const T* const of = w.at(v / kPanelVectors, panel_stride, panel_three) + c * kPanel;
        weight[v] = load_vector(of + v % kPanelVectors * kLanes);
      });
      repeat<kRows>([&](auto r) BDK_INLINE {
        const Vector value = broadcast(x.at(r, x_stride, x_three)[c]);
        repeat<kVectors>([&](auto v) BDK_INLINE {
          if constexpr (kRows > 1 && kVectors <= kFewVectors) {
            multiply_add(sum[r][v], value, weight[v]);
          } else {  // the compiler may read a weight where it is used
            sum[r][v] += value * weight[v];
          }
        });
      });
    });
    x.advance(channels);
    w.advance(channels * kPanel);
  };
  repeat<kRows>([&](auto r) BDK_INLINE {
    repeat<kVectors>([&](auto v) BDK_INLINE { sum[r][v] = Vector{}; });
  });
  int64_t c = 0;
  for (; c + kTurnChannels <= count; c += kTurnChannels) {
    multiply_channels(std::integral_constant<int, kTurnChannels>(), c);
  }
  for (; c < count; ++c) multiply_channels(std::integral_constant<int, 1>(), c);
}

// Weights that a tile prefetches: one address a channel, `step` floats apart; 0 for none.
struct Ahead {
  const float* weight = nullptr;
  int64_t step = 0;
};

inline int64_t distance_of_panels(const PanelLinear& linear) {
  return linear.panel_stride != 0 ? linear.panel_stride : linear.channels * kPanel;
}

inline const float* block(const PanelLinear& linear, int64_t panel, int64_t channel) {
  return linear.weight + panel * distance_of_panels(linear) + channel * kPanel;
}

// kRows rows of kPanels panels, channels [from, to).
template <int kRows, int kPanels>
inline void tile(const PanelLinear& linear, int64_t row, int64_t panel, int64_t from, int64_t to,
                 Ahead ahead = {}) {
  constexpr int kVectors = kPanels * kPanelVectors;
  const int64_t x_stride = linear.x_stride;
  const int64_t panel_stride = distance_of_panels(linear);
  Spaced<const float, kRows> x(linear.x + row * x_stride + from, x_stride);
  Spaced<const float, kPanels> w(block(linear, panel, from), panel_stride);
  const int64_t feature = panel * kPanel;
  float* const y = linear.y + row * linear.y_stride + feature;
  // The results may not be in the caches, or not any more, and stores wait for each other.
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kPanels; ++i) __builtin_prefetch(y + r * linear.y_stride + i * kPanel, 1);
  }
  for (int64_t begin = from; begin < to; begin += kSumChannels) {
    Sums<kRows, kPanels> sum;
    const int64_t end = least(begin + kSumChannels, to);
    if (kPanels == 1 && ahead.step > 0) {
      multiply<kRows, kPanels>(x, x_stride, w, panel_stride, end - begin, sum, [&](int64_t) {
        __builtin_prefetch(ahead.weight);
        ahead.weight += ahead.step;
      });
    } else {
      multiply<kRows, kPanels>(x, x_stride, w, panel_stride, end - begin, sum, [](int64_t) {});
    }
    repeat<kRows>([&](auto r) BDK_INLINE {
      float* const of_row = y + r * linear.y_stride;
      repeat<kVectors>([&](auto v) BDK_INLINE {
        Vector total = sum[r][v], other;
        const auto add = [&](const float* from) {
          memcpy(&other, from + v * kLanes, sizeof other);
          total += other;
        };
        if (begin > 0) add(of_row);
        if (end == linear.channels) {  // behind all sums, which may be much smaller
          if (linear.bias_or_null != nullptr) add(linear.bias_or_null + feature);
          if (linear.gate_or_null != nullptr) {
            const float* const gate = linear.gate_or_null + (row + r) * linear.gate_stride;
            total *= load_vector(gate + feature + v * kLanes);
          }
          if (linear.addend_or_null != nullptr) add(linear.addend_or_null + (of_row - linear.y));
        }
        memcpy(of_row + v * kLanes, &total, sizeof total);
      });
    });
  }
}

// kRows rows of panels [begin, end).
template <int kRows, int kPanels = tile_panels(kRows)>
inline void tiles(const PanelLinear& linear, int64_t row, int64_t begin, int64_t end, int64_t from,
                  int64_t to, Ahead ahead) {
  for (; begin + kPanels <= end; begin += kPanels) {
    tile<kRows, kPanels>(linear, row, begin, from, to, ahead);
  }
  if constexpr (kPanels > 1) tiles<kRows, kPanels - 1>(linear, row, begin, end, from, to, ahead);
}

using Tiles = void (*)(const PanelLinear&, int64_t, int64_t, int64_t, int64_t, int64_t, Ahead);

template <int... kRows>
inline Tiles tiles_of(int64_t rows, std::integer_sequence<int, kRows...>) {
  constexpr Tiles kTiles[] = {tiles<kRows + 1>...};
  return kTiles[rows - 1];
}

// Panels [begin, end) of rows [row, row_end), channels [from, to), in tiles of about equal height.
//
// Where tiles are few, a block of one panel is read by all before the next block, which lies
// elsewhere: the processor does not foresee it, so the first tiles prefetch it, each a part. `next`
// is the block behind the last one, null where nothing is to be prefetched.
inline void block_panels(const PanelLinear& linear, int64_t begin, int64_t end, int64_t row,
                         int64_t row_end, int64_t from, int64_t to, const float* next = nullptr) {
  const int64_t rows = row_end - row;
  const int64_t count = (rows + kMaxTileRows - 1) / kMaxTileRows;
  if (count == 0) return;
  int64_t group = tile_panels(static_cast<int>((rows + count - 1) / count));
  if (group == 1 && count > kGroupTiles) group = kGroupPanels;
  const int64_t prefetching = group == 1 && next != nullptr ? least(count, kPrefetchingTiles) : 0;
  for (int64_t panel = begin; panel < end; panel += group) {
    const int64_t panel_end = least(panel + group, end);
    const float* const following = panel_end < end ? block(linear, panel_end, from) : next;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t top = row + rows * i / count, bottom = row + rows * (i + 1) / count;
      const int64_t step = i < prefetching ? kPanel / prefetching : 0;
      const Ahead ahead = {following + i * (to - from) * step, step};
      tiles_of(bottom - top, std::make_integer_sequence<int, kMaxTileRows>())(
          linear, top, panel, panel_end, from, to, ahead);
    }
  }
}

// Some panels are done with before the next ones, so that where there are several blocks of
// channels their results stay in the second-level cache.
inline void blocks_of_panels(const PanelLinear& linear, int64_t begin, int64_t end, int64_t row,
                             int64_t row_end) {
  for (int64_t panel = begin; panel < end; panel += kGroupPanels) {
    const int64_t panel_end = least(panel + kGroupPanels, end);
    for (int64_t from = 0; from < linear.channels; from += kKeptChannels) {
      const int64_t to = least(from + kKeptChannels, linear.channels);
      const float* const next =  // no weights behind the last block: prefetching does no harm
          to < linear.channels ? block(linear, panel, to) : block(linear, panel_end, 0);
      block_panels(linear, panel, panel_end, row, row_end, from, to, next);
    }
  }
}

inline void linear_panels(const PanelLinear& linear, int64_t begin, int64_t end, int64_t row,
                          int64_t row_end) {
  if (row_end - row <= kMaxTileRows || linear.channels <= kBlockChannels) {
    block_panels(linear, begin, end, row, row_end, 0, linear.channels, block(linear, end, 0));
    return;
  }
  const int64_t rows = row_end - row, chunks = (rows + kChunkRows - 1) / kChunkRows;
  for (int64_t i = 0; i < chunks; ++i) {
    blocks_of_panels(linear, begin, end, row + rows * i / chunks, row + rows * (i + 1) / chunks);
  }
}

}  // namespace
}  // namespace bdk
