// Applies guidance to predictions of any dtype, with float32 results: one loop per instruction set
// and dtype.
#pragma once

#include <stdint.h>

namespace bdk {

// guided = conditional without `unconditional`, else unconditional + cfg (conditional -
// unconditional), each operation rounded.
using Guide = void (*)(const void* conditional, const void* unconditional_or_null, float cfg,
                       float* guided, int64_t count);

// One function for each dtype code.
struct GuideLoops {
  Guide by_dtype[3];
};

extern const GuideLoops kGuideAvx2, kGuideAvx512;

Guide choose_guide(int dtype);

}  // namespace bdk
