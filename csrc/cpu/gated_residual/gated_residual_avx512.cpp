// gated_residual compiled for AVX-512.
#include "cpu/gated_residual/gated_residual.h"

namespace bdk {

const GatedResidualRows kGatedResidualAvx512 = gated_residual_rows(gated_residual_row<true>);

}  // namespace bdk
