// Which instruction set the CPU kernels use, decided at run time.
#pragma once

namespace bdk {

enum Isa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

// The best set that this build and this processor have, capped by set_isa_limit.
Isa active_isa();

}  // namespace bdk
