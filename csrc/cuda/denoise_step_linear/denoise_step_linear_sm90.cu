// denoise_step_linear: check, launch.
#include "bitdance_kernels_cuda.h"
#include "cuda/common/launch_sm90.h"
#include "cuda/denoise_step_linear/denoise_step_linear_sm90.cuh"

int bdk_denoise_step_linear_cuda(const float* x, const void* x0, const float* table,
                                 const void* step, int step_bytes, const float* cfg_or_null,
                                 const float* noise_or_null, const int64_t* keys_or_null,
                                 int squash, const void* weight, const void* bias_or_null,
                                 float* state, void* stream_out, float* moments, int64_t tokens,
                                 int64_t patch, int64_t bits, int64_t features, int dtype,
                                 int programmatic, int device, void* stream) {
  using namespace bdk;
  if (dtype != kFloat16 && dtype != kBFloat16) return BDK_BAD_DTYPE;
  if (tokens < 0 || tokens > kStepLinearMaxTokens || patch < 1 || tokens % patch != 0 ||
      bits < 16 || bits > kStepLinearMaxBits || bits % 16 != 0 || features < 16 ||
      features % 16 != 0 || features > INT32_MAX || (step_bytes != 4 && step_bytes != 8) ||
      reinterpret_cast<uintptr_t>(weight) % 16 != 0 ||
      (noise_or_null == nullptr) == (keys_or_null == nullptr)) {
    return BDK_BAD_SIZE;
  }
  if (tokens == 0) return BDK_OK;
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  const DenoiseStepLinearParams params{x,
                                       x0,
                                       table,
                                       step,
                                       step_bytes == 8,
                                       squash != 0,
                                       cfg_or_null,
                                       noise_or_null,
                                       keys_or_null,
                                       static_cast<const uint4*>(weight),
                                       bias_or_null,
                                       state,
                                       stream_out,
                                       reinterpret_cast<float2*>(moments),
                                       static_cast<int>(tokens),
                                       static_cast<int>(patch),
                                       static_cast<int>(bits),
                                       static_cast<int>(features)};
  const int shared = step_linear_shared_bytes(params.tokens, params.bits);
  const LaunchSm90 how{device, stream, programmatic != 0};
  const int blocks = params.features / 16;
  if (dtype == kFloat16) {
    return launch_sm90(denoise_step_linear_kernel<__half>, params, blocks, kStepLinearThreads,
                       shared, 1, how);
  }
  return launch_sm90(denoise_step_linear_kernel<__nv_bfloat16>, params, blocks, kStepLinearThreads,
                     shared, 1, how);
}
