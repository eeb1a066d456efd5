// block_causal_attention compiled for AVX2.
#include "cpu/block_causal_attention/block_causal_attention.h"

namespace bdk {

const CausalLoops kCausalAvx2 = kCausalHere;

}  // namespace bdk
