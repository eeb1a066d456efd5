// gated_residual, alone and with the adaln_norm of its result: check, choose the kernel, launch it.
#include "bitdance_kernels_cuda.h"
#include "cuda/common/modulated_norm_launch.cuh"

int bdk_gated_residual_cuda(bdk_rows x, bdk_rows h, bdk_rows gate, bdk_rows y, int64_t rows,
                            int64_t channels, int device, void* stream) {
  using namespace bdk;
  const int status = check_rows({x, h, gate, y}, rows, channels);
  if (status != BDK_OK) return status;
  ModulatedNormParams params{};
  params.x = x;
  params.h = h;
  params.gate = gate;
  params.y = y;
  params.rows = rows;
  params.channels = static_cast<int>(channels);
  return launch_modulated_norm<true, false>(params, {x, h, gate, y}, device, stream);
}

int bdk_gated_residual_backward_cuda(bdk_rows grad, bdk_rows h, bdk_rows gate, bdk_rows grad_x,
                                     bdk_rows grad_h, bdk_rows grad_gate, int64_t rows,
                                     int64_t channels, int device, void* stream) {
  using namespace bdk;
  const int status = check_rows({grad, h, gate, grad_x, grad_h, grad_gate}, rows, channels);
  if (status != BDK_OK) return status;
  ModulatedNormBackwardParams params{};
  params.grad_y = grad;
  params.h = h;
  params.gate = gate;
  params.grad_x = grad_x;
  params.grad_h = grad_h;
  params.grad_gate = grad_gate;
  params.rows = rows;
  params.channels = static_cast<int>(channels);
  return launch_modulated_norm_backward<true, false>(
      params, {grad, h, gate, grad_x, grad_h, grad_gate}, {}, {}, 0, device, stream);
}

int bdk_gated_residual_adaln_cuda(bdk_rows x, bdk_rows h, bdk_rows gate, bdk_rows scale,
                                  bdk_rows shift, bdk_rows weight, bdk_rows bias, bdk_rows y,
                                  bdk_rows z, int64_t rows, int64_t channels, float eps, int device,
                                  void* stream) {
  using namespace bdk;
  const int status = check_rows({x, h, gate, scale, shift, weight, bias, y, z}, rows, channels);
  if (status != BDK_OK) return status;
  ModulatedNormParams params{
      x, h, gate, scale, shift, weight, bias, y, z, rows, 0, static_cast<int>(channels), eps};
  return launch_modulated_norm<true, true>(params, {x, h, gate, scale, shift, y, z}, device,
                                           stream);
}

int bdk_gated_residual_adaln_backward_cuda(bdk_rows grad_y, bdk_rows grad_z, bdk_rows y, bdk_rows h,
                                           bdk_rows gate, bdk_rows scale, bdk_rows weight,
                                           bdk_rows bias, bdk_rows grad_x, bdk_rows grad_h,
                                           bdk_rows grad_gate, bdk_rows grad_scale,
                                           bdk_rows grad_shift, bdk_rows grad_weight,
                                           bdk_rows grad_bias, float* partial, int64_t rows,
                                           int64_t channels, int64_t slices, float eps, int device,
                                           void* stream) {
  using namespace bdk;
  const int status = check_rows({grad_y, grad_z, y, h, gate, scale, weight, bias, grad_x, grad_h,
                                 grad_gate, grad_scale, grad_shift, grad_weight, grad_bias},
                                rows, channels);
  if (status != BDK_OK) return status;
  const ModulatedNormBackwardParams params{grad_y,
                                           grad_z,
                                           y,
                                           h,
                                           gate,
                                           scale,
                                           weight,
                                           bias,
                                           grad_x,
                                           grad_h,
                                           grad_gate,
                                           grad_scale,
                                           grad_shift,
                                           partial,
                                           rows,
                                           0,
                                           static_cast<int>(channels),
                                           eps};
  return launch_modulated_norm_backward<true, true>(
      params,
      {grad_y, grad_z, y, h, gate, scale, grad_x, grad_h, grad_gate, grad_scale, grad_shift},
      grad_weight, grad_bias, slices, device, stream);
}
