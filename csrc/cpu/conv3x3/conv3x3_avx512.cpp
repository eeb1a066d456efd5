// conv3x3 compiled for AVX-512.
#include "cpu/conv3x3/conv3x3.h"

namespace bdk {

const Conv3x3Loops kConv3x3Avx512 = {conv3x3_rows};

}  // namespace bdk
