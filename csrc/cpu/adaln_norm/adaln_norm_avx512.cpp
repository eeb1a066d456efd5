// adaln_norm compiled for AVX-512.
#include "cpu/adaln_norm/adaln_norm.h"

namespace bdk {

const AdalnNormRows kAdalnNormAvx512 = kAdalnNormHere;

}  // namespace bdk
