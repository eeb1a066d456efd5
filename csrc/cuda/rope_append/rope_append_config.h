// Compile-time numbers of rope_append. No CUDA code.
#pragma once

namespace bdk {

// Untuned until a card has decided. A lane turns four pairs of channels, which is two vectors of 8
// or 16 bytes; D / 8 lanes share a head.
constexpr int kRopeThreads = 128;
constexpr int kRopePairs = 4;
constexpr int kRopeMostHeadDim = 256;  // a head has at most a warp

}  // namespace bdk
