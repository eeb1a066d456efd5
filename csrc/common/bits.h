// Sign bits of float patterns, shared by the CPU and CUDA kernels.
#pragma once

#include <stdint.h>

#include "common/dtype.h"
#include "common/host_device.h"

namespace bdk {

// 1 if the float with this pattern is > 0. Subtracting one sends zero to the top of the
// unsigned range, so a single comparison rejects zero, NaN and everything negative. (Static: every
// file keeps its own copy, compiled for its own instruction set.)
BDK_HOST_DEVICE static inline uint32_t positive(uint32_t pattern, uint32_t infinity) {
  return pattern - 1u < infinity ? 1u : 0u;
}

}  // namespace bdk
