// rms_norm compiled for AVX2.
#include "cpu/rms_norm/rms_norm.h"

namespace bdk {

const RmsNormRows kRmsNormAvx2 = kRmsNormHere;

}  // namespace bdk
