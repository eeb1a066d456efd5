// Attention in bfloat16 by the processor's products of tiles (AMX), for processors that have them.
#pragma once

#include <stdint.h>

namespace bdk {

constexpr int kTileRows = 64;          // maximum of queries at a time
constexpr int kTileChannels = 128;     // maximum of a head
constexpr int kTileChannelsUnit = 32;  // the channels of a head are a multiple of it

// Keys and values of a head, one token every `*_stride`.
struct TileHead {
  const uint16_t *k, *v;
  int64_t k_stride, v_stride;
  int head_dim;
  float scale;
};

// A query, which sees the keys [begin, end), and its result.
struct TileRow {
  const uint16_t* q;
  uint16_t* out;
  int begin, end;
};

// lse_or_null: [count], the log of the sum of the exponentials. Weights are rounded to bfloat16 and
// divided by the sum of the rounded ones. False where a result is not finite, which may come from a
// value that the query does not see: it is left to code that multiplies no others.
bool attend_in_tiles(const TileHead& head, const TileRow* rows, int count, float* lse_or_null);

}  // namespace bdk
