// block_decode_attention compiled for AVX2.
#include "cpu/block_decode_attention/block_decode_attention.h"

namespace bdk {

const DecodeLoops kDecodeAvx2 = {decode_attend};

}  // namespace bdk
