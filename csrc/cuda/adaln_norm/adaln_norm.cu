// adaln_norm: check, choose the kernel, launch it.
#include "bitdance_kernels_cuda.h"
#include "cuda/common/modulated_norm_launch.cuh"

int bdk_adaln_norm_cuda(bdk_rows x, bdk_rows scale, bdk_rows shift, bdk_rows weight, bdk_rows bias,
                        bdk_rows y, int64_t rows, int64_t channels, float eps, int device,
                        void* stream) {
  using namespace bdk;
  const int status = check_rows({x, scale, shift, weight, bias, y}, rows, channels);
  if (status != BDK_OK) return status;
  ModulatedNormParams params{};
  params.x = x;
  params.scale = scale;
  params.shift = shift;
  params.weight = weight;
  params.bias = bias;
  params.z = y;
  params.rows = rows;
  params.channels = static_cast<int>(channels);
  params.eps = eps;
  return launch_modulated_norm<false, true>(params, {x, scale, shift, y}, device, stream);
}

int bdk_adaln_norm_backward_cuda(bdk_rows grad, bdk_rows x, bdk_rows scale, bdk_rows weight,
                                 bdk_rows bias, bdk_rows grad_x, bdk_rows grad_scale,
                                 bdk_rows grad_shift, bdk_rows grad_weight, bdk_rows grad_bias,
                                 float* partial, int64_t rows, int64_t channels, int64_t slices,
                                 float eps, int device, void* stream) {
  using namespace bdk;
  const int status = check_rows(
      {grad, x, scale, weight, bias, grad_x, grad_scale, grad_shift, grad_weight, grad_bias}, rows,
      channels);
  if (status != BDK_OK) return status;
  ModulatedNormBackwardParams params{};
  params.grad_z = grad;
  params.y = x;
  params.scale = scale;
  params.weight = weight;
  params.bias = bias;
  params.grad_x = grad_x;
  params.grad_scale = grad_scale;
  params.grad_shift = grad_shift;
  params.partial = partial;
  params.rows = rows;
  params.channels = static_cast<int>(channels);
  params.eps = eps;
  return launch_modulated_norm_backward<false, true>(
      params, {grad, x, scale, grad_x, grad_scale, grad_shift}, grad_weight, grad_bias, slices,
      device, stream);
}
