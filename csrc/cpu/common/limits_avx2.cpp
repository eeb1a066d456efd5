// The limits compiled for AVX2.
#include "cpu/common/limits.h"

namespace bdk {

Limits limits_avx2() { return kLimits; }

}  // namespace bdk
