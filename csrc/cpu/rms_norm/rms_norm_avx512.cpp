// rms_norm compiled for AVX-512.
#include "cpu/rms_norm/rms_norm.h"

namespace bdk {

const RmsNormRows kRmsNormAvx512 = kRmsNormHere;

}  // namespace bdk
