// Compile-time numbers of the denoise_step kernel. No CUDA code.
#pragma once

namespace bdk {

// Not tuned on a GPU yet. Four values take one Philox counter and two Box-Muller pairs.
constexpr int kDenoiseStepThreads = 128;

}  // namespace bdk
