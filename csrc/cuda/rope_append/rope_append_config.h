// Compile-time numbers of rope_append. No CUDA code.
#pragma once

namespace bdk {

// Not tuned on a GPU yet. A lane rotates four pairs of channels, which are two vectors of 8
// or 16 bytes; D / 8 lanes share a head.
constexpr int kRopeThreads = 128;
constexpr int kRopePairs = 4;
constexpr int kRopeMaxHeadDim = 256;  // a head has at most one warp

}  // namespace bdk
