// Compile-time numbers of the sign unpacking kernels. No CUDA code.
#pragma once

namespace bdk {

// Untuned until a card has decided; as for pack_signs.
constexpr int kUnpackSignsThreads = 256;
constexpr int kUnpackSignsUnroll = 4;

}  // namespace bdk
