// Compile-time numbers of the finalize_bits kernel. No CUDA code.
#pragma once

namespace bdk {

// Not tuned on a GPU yet; a thread makes one byte and eight values.
constexpr int kFinalizeBitsThreads = 256;

}  // namespace bdk
