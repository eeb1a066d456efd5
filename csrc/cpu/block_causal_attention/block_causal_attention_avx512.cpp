// block_causal_attention compiled for AVX-512.
#include "cpu/block_causal_attention/block_causal_attention.h"

namespace bdk {

const CausalLoops kCausalAvx512 = kCausalHere;

}  // namespace bdk
