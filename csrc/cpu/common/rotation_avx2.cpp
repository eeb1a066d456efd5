// Rotations compiled for AVX2.
#include "cpu/common/rotation.h"

namespace bdk {

const RotationRows kRotationAvx2 = kRotationRows;

}  // namespace bdk
