// linear compiled for AVX2.
#include "cpu/linear/linear.h"

namespace bdk {

const LinearLoops kLinearAvx2 = {linear_features};

}  // namespace bdk
