// linear compiled for AVX2.
#include "cpu/linear/int8.h"
#include "cpu/linear/linear.h"

namespace bdk {

const LinearLoops kLinearAvx2 = {linear_features};
const Int8LinearLoops kInt8LinearAvx2 = {int8_panels};

}  // namespace bdk
