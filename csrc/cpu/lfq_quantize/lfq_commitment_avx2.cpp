// The commitment loss compiled for AVX2.
#include "cpu/lfq_quantize/lfq_commitment.h"

namespace bdk {

const LfqCommitmentLoops kLfqCommitmentAvx2 = {lfq_commitment_sum, lfq_commitment_backward};

}  // namespace bdk
