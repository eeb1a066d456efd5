// Compile-time numbers of group_norm_silu. No CUDA code.
#pragma once

namespace bdk {

// Untuned until a card has decided. A thread keeps to one vector of 16 bytes of channels and goes
// down its chunk's positions.
constexpr int kGroupNormThreads = 256;
// The kernels that put chunks together: threads of a group, and those that share a channel's sums.
constexpr int kGroupNormJoiners = 128;
constexpr int kGroupNormLanes = 16;
constexpr int kGroupNormAtOnce = kGroupNormJoiners / kGroupNormLanes;  // channels

}  // namespace bdk
