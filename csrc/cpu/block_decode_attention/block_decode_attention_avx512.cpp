// block_decode_attention compiled for AVX-512.
#include "cpu/block_decode_attention/block_decode_attention.h"

namespace bdk {

const DecodeLoops kDecodeAvx512 = {decode_attend};

}  // namespace bdk
