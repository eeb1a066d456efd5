// Compile-time numbers of the sign unpacking kernels. No CUDA code.
#pragma once

namespace bdk {

// Not tuned on a GPU yet; as for pack_signs.
constexpr int kUnpackSignsThreads = 256;
constexpr int kUnpackSignsUnroll = 4;

}  // namespace bdk
