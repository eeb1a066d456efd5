// gated_residual compiled for AVX2.
#include "cpu/gated_residual/gated_residual.h"

namespace bdk {

const GatedResidualRows kGatedResidualAvx2 = gated_residual_rows(gated_residual_row<true>);

}  // namespace bdk
