// Compile-time numbers of the sign packing kernels. No CUDA code.
#pragma once

namespace bdk {

// Not tuned on a GPU yet; 256 threads give full occupancy at this register use.
constexpr int kPackSignsThreads = 256;
// Bytes a thread handles per round, loaded before any is stored: four float32 bytes are eight
// 16-byte loads in flight.
constexpr int kPackSignsUnroll = 4;

}  // namespace bdk
