// adaln_norm compiled for AVX2.
#include "cpu/adaln_norm/adaln_norm.h"

namespace bdk {

const AdalnNormRows kAdalnNormAvx2 = {adaln_norm_row, adaln_norm_backward_row,
                                      adaln_norm_add_affine};

}  // namespace bdk
