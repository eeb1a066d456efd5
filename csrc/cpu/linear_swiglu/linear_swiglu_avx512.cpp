// linear_swiglu compiled for AVX-512.
#include "cpu/linear_swiglu/linear_swiglu.h"

namespace bdk {

const LinearSwigluLoops kLinearSwigluAvx512 = {linear_swiglu_panels};

}  // namespace bdk
