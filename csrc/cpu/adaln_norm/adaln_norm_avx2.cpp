// adaln_norm compiled for AVX2.
#include "cpu/adaln_norm/adaln_norm.h"

namespace bdk {

const AdalnNormRows kAdalnNormAvx2 = kAdalnNormHere;

}  // namespace bdk
