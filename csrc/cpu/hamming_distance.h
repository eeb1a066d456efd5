// The inner loops of hamming_distance and nearest_codes, one set per instruction set.
//
// The codes that are searched come in blocks of eight, word by word: block[8 * word + code], so
// that a vector holds the same word of eight codes and no sum runs across its lanes.
#pragma once

#include <stdint.h>

namespace bdk {

constexpr int kBlock = 8;

// One row of distances to `count` codes in blocks.
using DistanceRow = void (*)(const uint64_t* a, const uint64_t* blocks, int64_t words,
                             int64_t count, int32_t* out);

constexpr int kGroup = 4;                 // queries that share what they read of the codes
constexpr int64_t kMostNeighbours = 128;  // they are kept in a sorted list
constexpr int kIndexBits = 38;            // below the distance in a neighbour's key

// For each of up to kGroup queries the `k` least (distance, index) in ascending order.
using NearestRows = void (*)(const uint64_t* a, int queries, const uint64_t* blocks, int64_t words,
                             int64_t count, int64_t k, int64_t* index, int32_t* distance);

struct HammingRows {
  DistanceRow distance;
  NearestRows nearest;
};

extern const HammingRows kHammingAvx2, kHammingAvx512, kHammingVpopcnt;

// Eight::distances(a, block, words) gives eight distances, Eight::store(values, out) keeps
// them, Eight::below(values, limit) has a bit for each that is under the limit.
template <class Eight>
static inline void distance_row(const uint64_t* a, const uint64_t* blocks, int64_t words,
                                int64_t count, int32_t* out) {
  int64_t m = 0;
  for (; m + kBlock <= count; m += kBlock, blocks += kBlock * words) {
    Eight::store(Eight::distances(a, blocks, words), out + m);
  }
  if (m < count) {
    alignas(32) int32_t last[kBlock];
    Eight::store(Eight::distances(a, blocks, words), last);
    for (int64_t i = 0; m + i < count; ++i) out[m + i] = last[i];
  }
}

// The nearest codes of a query so far, as ascending keys: the distance, then the index.
struct Neighbours {
  int64_t lists[2][kMostNeighbours + 1];  // one is read while the other is written
  int current;
  int32_t limit;  // what a code must be nearer than; equal ones come too late

  void clear(int64_t k) {
    lists[0][0] = lists[1][0] = INT64_MIN;  // stands before the first
    for (int64_t i = 1; i <= k; ++i) lists[0][i] = INT64_MAX;
    current = 0;
    limit = INT32_MAX;
  }

  // No branch depends on where the key belongs: every place takes the middle one of its key, the
  // one before it and the new one.
  void insert(int64_t key, int64_t k) {
    const int64_t* from = lists[current];
    int64_t* to = lists[current ^ 1];
#pragma omp simd
    for (int64_t i = 1; i <= k; ++i) {
      const int64_t kept = from[i] < key ? from[i] : key;
      to[i] = from[i - 1] > kept ? from[i - 1] : kept;
    }
    current ^= 1;
    limit = static_cast<int32_t>(to[k] >> kIndexBits);
  }
};

template <class Eight>
static inline void nearest_rows(const uint64_t* a, int queries, const uint64_t* blocks,
                                int64_t words, int64_t count, int64_t k, int64_t* index,
                                int32_t* distance) {
  Neighbours nearest[kGroup];
  for (int q = 0; q < kGroup; ++q) nearest[q].clear(k);
  for (int64_t m = 0; m < count; m += kBlock, blocks += kBlock * words) {
    const uint32_t codes = count - m < kBlock ? (1u << (count - m)) - 1u : (1u << kBlock) - 1u;
    for (int q = 0; q < queries; ++q) {
      const auto found = Eight::distances(a + q * words, blocks, words);
      uint32_t nearer = Eight::below(found, nearest[q].limit) & codes;
      if (nearer == 0) continue;
      alignas(32) int32_t eight[kBlock];
      Eight::store(found, eight);
      for (; nearer != 0; nearer &= nearer - 1) {
        const int i = __builtin_ctz(nearer);
        nearest[q].insert((int64_t{eight[i]} << kIndexBits) + m + i, k);
      }
    }
  }
  for (int q = 0; q < queries; ++q) {
    const int64_t* keys = nearest[q].lists[nearest[q].current] + 1;
    for (int64_t i = 0; i < k; ++i) {
      index[q * k + i] = keys[i] & ((int64_t{1} << kIndexBits) - 1);
      distance[q * k + i] = static_cast<int32_t>(keys[i] >> kIndexBits);
    }
  }
}

}  // namespace bdk
