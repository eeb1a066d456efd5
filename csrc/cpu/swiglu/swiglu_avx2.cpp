// swiglu compiled for AVX2.
#include "cpu/swiglu/swiglu.h"

namespace bdk {

const SwigluRows kSwigluAvx2 = {swiglu_row<false>, swiglu_row<true>, swiglu_backward_row};

}  // namespace bdk
