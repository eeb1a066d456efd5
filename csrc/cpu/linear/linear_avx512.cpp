// linear compiled for AVX-512.
#include "cpu/linear/int8.h"
#include "cpu/linear/linear.h"

namespace bdk {

const LinearLoops kLinearAvx512 = {linear_features};
const Int8LinearLoops kInt8LinearAvx512 = {int8_panels};

}  // namespace bdk
