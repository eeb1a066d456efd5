// lfq_entropy compiled for AVX2.
#include "cpu/lfq_entropy/lfq_entropy.h"

namespace bdk {

const LfqEntropyLoops kLfqEntropyAvx2 = {lfq_entropy_forward, lfq_entropy_backward};

}  // namespace bdk
