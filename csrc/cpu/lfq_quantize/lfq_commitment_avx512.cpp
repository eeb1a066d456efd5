// The commitment loss compiled for AVX-512.
#include "cpu/lfq_quantize/lfq_commitment.h"

namespace bdk {

const LfqCommitmentLoops kLfqCommitmentAvx512 = {lfq_commitment_sum, lfq_commitment_backward};

}  // namespace bdk
