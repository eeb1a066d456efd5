// The last loop of denoise_step compiled for AVX-512.
#include "cpu/denoise_step/denoise_step.h"

namespace bdk {

const Affine kAffineAvx512 = affine;

}  // namespace bdk
