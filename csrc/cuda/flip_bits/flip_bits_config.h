// Compile-time numbers of the flip kernels. No CUDA code.
#pragma once

namespace bdk {

// Not tuned on a GPU yet. A byte takes about seventy instructions, so throughput needs many
// warps and several independent draws in each thread.
constexpr int kFlipThreads = 256;
constexpr int kFlipSignsUnroll = 2;

}  // namespace bdk
