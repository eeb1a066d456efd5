// How the cache of a row is divided among the blocks that read it: the same on host and device.
#pragma once

#include <stdint.h>

#include "common/host_device.h"

namespace bdk {

// Keys [first, last) of one split.
struct Split {
  int first, last;
};

// A length clamped to what the cache has.
BDK_HOST_DEVICE inline int clamp_length(int length, int cache_tokens) {
  const int tokens = length < cache_tokens ? length : cache_tokens;
  return tokens > 0 ? tokens : 0;
}

// Keys of each split: whole tiles, so that only the last tile of a row is partly filled.
BDK_HOST_DEVICE inline int split_share(int length, int splits, int tile) {
  const int tiles = length / tile + (length % tile != 0);
  return (tiles / splits + (tiles % splits != 0)) * tile;
}

// A split past the end is empty: first >= last.
BDK_HOST_DEVICE inline Split split_of(int index, int length, int splits, int tile) {
  const int64_t share = split_share(length, splits, tile);
  const int64_t first = index * share;
  const int64_t last = first + share < length ? first + share : length;
  return {static_cast<int>(first < length ? first : length), static_cast<int>(last)};
}

}  // namespace bdk
