// Shared by the C++ and CUDA kernels of group_norm_silu: combining the moments of parts of a group,
// and the coefficients of a channel that follow from them.
//
//   n = weight (x - mean) / sqrt(var + eps) + bias,  z = scale n + shift,  y = z sigmoid(z)
#pragma once

#include <math.h>

#include "common/host_device.h"

namespace bdk {

struct Spread {  // mean of `count` values and sum of squared distances to it
  double count, mean, squares;
};

// Spread of both parts together (Chan, Golub and LeVeque, 1979).
BDK_HOST_DEVICE inline Spread merge(Spread a, Spread b) {
  if (a.count == 0.0) return b;
  if (b.count == 0.0) return a;
  const double count = a.count + b.count, distance = b.mean - a.mean;
  return {count, a.mean + distance * b.count / count,
          a.squares + b.squares + distance * distance * a.count * b.count / count};
}

BDK_HOST_DEVICE inline double reciprocal_deviation(Spread spread, double eps) {
  return 1.0 / sqrt(spread.squares / spread.count + eps);
}

struct ChannelAffine {
  double weight, bias, scale, shift;
};

// z = (x - mean) a + d.
BDK_HOST_DEVICE inline float channel_slope(ChannelAffine k, double rstd) {
  return static_cast<float>(rstd * k.weight * k.scale);
}
BDK_HOST_DEVICE inline float channel_offset(ChannelAffine k) {
  return static_cast<float>(k.bias * k.scale + k.shift);
}

// Gradients of weight, bias, scale and shift of one channel, and the channel's share in two sums
// over its group: the gradient of unit = (x - mean) rstd, and that gradient times unit. Computed
// from the sums over an image's positions of the gradient of z and of that gradient times
// (x - mean).
struct ChannelGradients {
  double weight, bias, scale, shift, along_one, along_unit;
};

BDK_HOST_DEVICE inline ChannelGradients channel_gradients(ChannelAffine k, double rstd,
                                                          double grad_z, double grad_z_x) {
  const double with_unit = grad_z_x * rstd, both = k.weight * k.scale;
  return {k.scale * with_unit, k.scale * grad_z, k.weight * with_unit + k.bias * grad_z, grad_z,
          both * grad_z,       both * with_unit};
}

}  // namespace bdk
