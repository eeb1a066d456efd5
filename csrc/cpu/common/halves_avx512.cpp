// Conversions of halves compiled for AVX-512.
#include "cpu/common/halves.h"

namespace bdk {

const Halves kHalvesAvx512 = kHalvesHere;

}  // namespace bdk
