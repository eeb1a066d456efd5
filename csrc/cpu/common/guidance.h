// Predictions in any dtype to guided float32 values, one loop per instruction set and dtype.
#pragma once

#include <stdint.h>

namespace bdk {

// guided = conditional without `unconditional`, else unconditional + cfg (conditional -
// unconditional), rounded operation by operation.
using Guide = void (*)(const void* conditional, const void* unconditional_or_null, float cfg,
                       float* guided, int64_t count);

// By dtype code.
struct GuideLoops {
  Guide of_dtype[3];
};

extern const GuideLoops kGuideAvx2, kGuideAvx512;

Guide choose_guide(int dtype);

}  // namespace bdk
