// Compile-time numbers of group_norm_silu. No CUDA code.
#pragma once

namespace bdk {

// Not tuned on a GPU yet. A thread has one vector of 16 bytes of channels and loops over the
// positions of its chunk.
constexpr int kGroupNormThreads = 256;
// The kernels that combine chunks: threads of a group, and threads that share a channel's sums.
constexpr int kGroupNormJoiners = 128;
constexpr int kGroupNormLanes = 16;
constexpr int kGroupNormAtOnce = kGroupNormJoiners / kGroupNormLanes;  // channels

}  // namespace bdk
