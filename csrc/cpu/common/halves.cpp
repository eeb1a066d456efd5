// Conversions of halves: choice of the instruction set.
#include "cpu/common/halves.h"

#include "cpu/common/isa.h"
#include "cpu/common/wide_rows.h"

namespace bdk {

const Halves& choose_halves() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kHalvesAvx512;
  if (active_isa() == kAvx2) return kHalvesAvx2;
#endif
  return kHalvesHere;
}

}  // namespace bdk
