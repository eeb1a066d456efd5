// linear compiled for AVX-512.
#include "cpu/linear/linear.h"

namespace bdk {

const LinearLoops kLinearAvx512 = {linear_features};

}  // namespace bdk
