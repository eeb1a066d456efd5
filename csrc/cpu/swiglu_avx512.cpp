// swiglu compiled for AVX-512.
#include "cpu/swiglu.h"

namespace bdk {

const SwigluRows kSwigluAvx512 = {swiglu_row, swiglu_backward_row};

}  // namespace bdk
