// group_norm_silu compiled for AVX2.
#include "cpu/group_norm_silu/group_norm_silu.h"

namespace bdk {

const GroupNormLoops kGroupNormAvx2 = kGroupNormLoops;

}  // namespace bdk
