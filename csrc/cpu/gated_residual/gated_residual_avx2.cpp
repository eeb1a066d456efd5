// gated_residual compiled for AVX2.
#include "cpu/gated_residual/gated_residual.h"

namespace bdk {

const GatedResidualRows kGatedResidualAvx2 = {
    gated_residual_row<false>,       gated_residual_row<true>, gated_residual_halves<Float16>,
    gated_residual_halves<Bfloat16>, gated_residual_norm_row,  gated_residual_backward_row};

}  // namespace bdk
