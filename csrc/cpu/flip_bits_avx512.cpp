// flip_bits compiled for AVX-512.
#include "cpu/flip_bits.h"

namespace bdk {

void flip_lanes_avx512(FlipKey key, int64_t first, uint8_t* flips) {
  flip_lanes(key, first, flips);
}

}  // namespace bdk
