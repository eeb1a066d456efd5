// The last loop of denoise_step compiled for AVX2.
#include "cpu/denoise_step/denoise_step.h"

namespace bdk {

const Affine kAffineAvx2 = affine;

}  // namespace bdk
