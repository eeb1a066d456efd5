// Which instruction set the CPU kernels use, decided at run time.
#pragma once

#include <stdint.h>

namespace bdk {

enum Isa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2, kAmx = 3 };

// The best set of vectors that this build and this processor have, capped by set_isa_limit.
Isa active_isa();

// Whether there are products of tiles of bfloat16 (AMX, with AVX-512 and its bfloat16) too.
bool has_bfloat16_tiles();

// Whether non-temporal stores are faster than normal ones for an output of `bytes` in memory that
// has been used before; smaller outputs are better left in the caches for whoever reads them next.
// On an EPYC they are from 4 MiB on. On a Xeon in a virtual machine they take twice as long at 1
// MiB, as long at 16, and 0.4 of the time from 64 MiB on.
bool streaming_pays(int64_t bytes);

}  // namespace bdk
