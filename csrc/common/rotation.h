// Rotary embedding of one pair of channels: the same on host and device.
#pragma once

#include "common/host_device.h"

namespace bdk {

// (a, b) rotated by the angle of (cos, sin).
BDK_HOST_DEVICE inline void rotate_pair(float& a, float& b, float cos, float sin) {
  const float turned = a * cos - b * sin;
  b = a * sin + b * cos;
  a = turned;
}

}  // namespace bdk
