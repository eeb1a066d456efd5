// Compile-time numbers of the kernels of hamming_distance. No CUDA code.
#pragma once

namespace bdk {

// Not tuned on a GPU yet.
// hamming_distance: a block of 8 warps makes a tile of 64 x 64 distances; a warp makes 8 rows of
// it, a lane two columns, so that stores have no gap and a word in shared memory serves 16
// distances.
constexpr int kHammingTile = 64;
constexpr int kHammingWarps = 8;
constexpr int kHammingWords = 32;  // words of a code in shared memory at a time

// nearest_codes: one warp per query, as many per block as their histograms leave room for.
constexpr int kNearestWarps = 8;
constexpr int kNearestShared = 48 * 1024;  // bytes, the default limit of a block
constexpr int kMaxNearestBits = 8192;

}  // namespace bdk
