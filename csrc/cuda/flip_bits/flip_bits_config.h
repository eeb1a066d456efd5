// Compile-time numbers of the flip kernels. No CUDA code.
#pragma once

namespace bdk {

// Untuned until a card has decided. A byte takes some fifty integer instructions: what counts is
// that many warps are there, and several independent draws in each thread.
constexpr int kFlipThreads = 256;
constexpr int kFlipBitsUnroll = 4;
constexpr int kFlipSignsUnroll = 2;

}  // namespace bdk
