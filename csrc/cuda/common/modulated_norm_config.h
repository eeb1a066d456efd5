// Compile-time numbers of adaln_norm and gated_residual. No CUDA code.
#pragma once

namespace bdk {

// Not tuned on a GPU yet. A thread holds 16 channels of its row in registers, so that
// every tensor is read once: rows of up to 512 channels need one warp and no barrier, wider rows
// one more warp for each 512.
constexpr int kThreadChannels = 16;
constexpr int kWidth = 8;  // adjacent channels that a thread moves together
constexpr int kPackets = kThreadChannels / kWidth;
constexpr int kWarpChannels = 32 * kThreadChannels;
constexpr int kMaxRowWarps = 16;
constexpr int kMaxRowThreads = 32 * kMaxRowWarps;
constexpr int kMaxRowChannels = kMaxRowWarps * kWarpChannels;
// Rows of one warp that share a block, from as many rows on as give every multiprocessor a block.
constexpr int kBlockRows = 4;
constexpr int kManyRows = 4 * 132;
// What a thread keeps in shared memory for weight and bias; odd, so that no two banks meet.
constexpr int kThreadAffine = 4 * kThreadChannels + 1;
// The last stage of the gradients of weight and bias: channels and lanes a block.
constexpr int kAffineChannels = 32;
constexpr int kAffineLanes = 8;

}  // namespace bdk
