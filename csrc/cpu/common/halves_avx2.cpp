// Conversions of halves compiled for AVX2.
#include "cpu/common/halves.h"

namespace bdk {

const Halves kHalvesAvx2 = kHalvesHere;

}  // namespace bdk
