// The limits compiled for AVX-512.
#include "cpu/common/limits.h"

namespace bdk {

Limits limits_avx512() { return kLimits; }

}  // namespace bdk
