// linear_swiglu compiled for AVX2.
#include "cpu/linear_swiglu/linear_swiglu.h"

namespace bdk {

const LinearSwigluLoops kLinearSwigluAvx2 = {linear_swiglu_panels};

}  // namespace bdk
