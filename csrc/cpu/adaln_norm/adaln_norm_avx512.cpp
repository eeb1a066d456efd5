// adaln_norm compiled for AVX-512.
#include "cpu/adaln_norm/adaln_norm.h"

namespace bdk {

const AdalnNormRows kAdalnNormAvx512 = {adaln_norm_row, adaln_norm_backward_row,
                                        adaln_norm_add_affine};

}  // namespace bdk
