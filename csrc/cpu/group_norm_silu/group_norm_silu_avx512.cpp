// group_norm_silu compiled for AVX-512.
#include "cpu/group_norm_silu/group_norm_silu.h"

namespace bdk {

const GroupNormLoops kGroupNormAvx512 = kGroupNormLoops;

}  // namespace bdk
