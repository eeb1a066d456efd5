// The inner loops of hamming_distance and nearest_codes, one set per instruction set.
//
// The codes that are searched come in blocks of eight, word by word: block[8 * word + code], so
// that a vector holds the same word of eight codes and no sum runs across its lanes.
#pragma once

#include <stdint.h>

namespace bdk {

constexpr int kBlock = 8;

// One row of distances to `count` codes in blocks; `stream` asks for stores that pass by the
// caches (`out` is then aligned to 32 bytes).
using DistanceRow = void (*)(const uint64_t* a, const uint64_t* blocks, int64_t words,
                             int64_t count, bool stream, int32_t* out);

// The `k` least (distance, index) in ascending order.
using NearestRow = void (*)(const uint64_t* a, const uint64_t* blocks, int64_t words, int64_t count,
                            int64_t k, int64_t* index, int32_t* distance);

struct HammingRows {
  DistanceRow distance;
  NearestRow nearest;
};

extern const HammingRows kHammingAvx2, kHammingAvx512, kHammingVpopcnt;

// Eight::distances(a, block, words, out) gives eight distances; Eight::store(values, out, stream)
// is what keeps them.
template <class Eight>
static inline void distance_row(const uint64_t* a, const uint64_t* blocks, int64_t words,
                                int64_t count, bool stream, int32_t* out) {
  int64_t m = 0;
  for (; m + kBlock <= count; m += kBlock, blocks += kBlock * words) {
    Eight::store(Eight::distances(a, blocks, words), out + m, stream);
  }
  if (m < count) {
    alignas(32) int32_t last[kBlock];
    Eight::store(Eight::distances(a, blocks, words), last, false);
    for (int64_t i = 0; m + i < count; ++i) out[m + i] = last[i];
  }
}

template <class Eight>
static inline void nearest_row(const uint64_t* a, const uint64_t* blocks, int64_t words,
                               int64_t count, int64_t k, int64_t* index, int32_t* distance) {
  int64_t kept = 0;
  int32_t limit = INT32_MAX;  // what a code must be nearer than; equal ones come too late
  for (int64_t m = 0; m < count; m += kBlock, blocks += kBlock * words) {
    const auto found = Eight::distances(a, blocks, words);
    if (kept == k && !Eight::any_below(found, limit)) continue;
    alignas(32) int32_t eight[kBlock];
    Eight::store(found, eight, false);
    for (int64_t i = 0; i < kBlock && m + i < count; ++i) {
      if (eight[i] >= limit) continue;
      int64_t at = kept < k ? kept++ : k - 1;
      for (; at > 0 && distance[at - 1] > eight[i]; --at) {
        distance[at] = distance[at - 1];
        index[at] = index[at - 1];
      }
      distance[at] = eight[i];
      index[at] = m + i;
      if (kept == k) limit = distance[k - 1];
    }
  }
}

}  // namespace bdk
