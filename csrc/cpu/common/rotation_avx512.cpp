// Rotations compiled for AVX-512.
#include "cpu/common/rotation.h"

namespace bdk {

const RotationRows kRotationAvx512 = kRotationRows;

}  // namespace bdk
