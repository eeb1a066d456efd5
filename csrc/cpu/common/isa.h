// Which instruction set the CPU kernels use, decided at run time.
#pragma once

#include <stdint.h>

namespace bdk {

enum Isa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

// The best set that this build and this processor have, capped by set_isa_limit.
Isa active_isa();

// Whether stores past the caches are quicker than stores through them for an output of `bytes` in
// memory that has been used before. On an EPYC they are from where inputs and output outgrow the
// caches that cores share; what fits there is found there by what reads it, and takes longer to
// memory. On a Xeon in a virtual machine they took two to three times as long.
bool streaming_pays(int64_t bytes);

}  // namespace bdk
