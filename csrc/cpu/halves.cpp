// Conversions of halves: choice of the instruction set.
#include "cpu/halves.h"

#include "cpu/isa.h"
#include "cpu/wide_rows.h"

namespace bdk {

const Halves& choose_halves() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kHalvesAvx512;
  if (active_isa() == kAvx2) return kHalvesAvx2;
#endif
  return kHalvesHere;
}

}  // namespace bdk
