// Which instruction set the CPU kernels use, decided at run time.
#pragma once

namespace bdk {

enum Isa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

// The best set that this build and this processor have, capped by set_isa_limit.
Isa active_isa();

// Whether stores past the caches are quicker than stores through them where the output does not fit
// the caches of a core and has been used before. On an EPYC by a seventh, what reads the output
// next included; on a Xeon in a virtual machine they took two to three times as long.
bool streaming_pays();

}  // namespace bdk
