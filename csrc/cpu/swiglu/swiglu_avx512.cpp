// swiglu compiled for AVX-512.
#include "cpu/swiglu/swiglu.h"

namespace bdk {

const SwigluRows kSwigluAvx512 = {swiglu_row<false>, swiglu_row<true>, swiglu_backward_row};

}  // namespace bdk
