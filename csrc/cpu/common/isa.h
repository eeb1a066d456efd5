// Which instruction set the CPU kernels use, decided at run time.
#pragma once

#include <stdint.h>

namespace bdk {

enum Isa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

// The best set that this build and this processor have, capped by set_isa_limit.
Isa active_isa();

// Whether non-temporal stores are faster than normal ones for an output of `bytes` in memory that
// has been used before. On an EPYC they are as soon as inputs and output exceed the shared cache;
// smaller outputs are better left in it for whoever reads them next. On a Xeon in a virtual machine
// they took two to three times as long.
bool streaming_pays(int64_t bytes);

}  // namespace bdk
