// denoise_step: choose the kernel, launch it.
#include "bitdance_kernels_cuda.h"
#include "common/dtype.h"
#include "cuda/common/launch.h"
#include "cuda/denoise_step/denoise_step.cuh"

namespace bdk {
namespace {

template <class T>
void launch(const DenoiseStepParams& params, cudaStream_t stream) {
  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  };
  const bool vector = params.elements % 4 == 0 && aligned(params.x) && aligned(params.x0) &&
                      aligned(params.noise) && aligned(params.y) &&
                      (params.values * sizeof(T)) % 16 == 0;
  const unsigned int blocks = grid_blocks(params.blocks, kDenoiseStepThreads);
  const auto kernel = vector ? denoise_step_kernel<T, true> : denoise_step_kernel<T, false>;
  kernel<<<blocks, kDenoiseStepThreads, 0, stream>>>(params);
}

}  // namespace
}  // namespace bdk

int bdk_denoise_step_cuda(const float* x, const void* x0, const float* table, const void* step,
                          int step_bytes, const float* cfg_or_null, const float* noise_or_null,
                          const int64_t* keys_or_null, float* y, int64_t rows, int64_t elements,
                          int dtype, int device, void* stream) {
  using namespace bdk;
  constexpr int64_t kMaxElements = int64_t{1} << 34;  // 32 bits count blocks of four
  if (!is_dtype(dtype)) return BDK_BAD_DTYPE;
  if (rows < 0 || elements < 0 || (step_bytes != 4 && step_bytes != 8)) return BDK_BAD_SIZE;
  if (rows == 0 || elements == 0) return BDK_OK;
  if (noise_or_null == nullptr && (keys_or_null == nullptr || elements > kMaxElements)) {
    return BDK_BAD_SIZE;
  }
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  const int64_t row_blocks = (elements + 3) / 4;
  const DenoiseStepParams params{x,
                                 x0,
                                 table,
                                 step,
                                 step_bytes == 8,
                                 cfg_or_null,
                                 noise_or_null,
                                 keys_or_null,
                                 y,
                                 elements,
                                 row_blocks,
                                 rows * row_blocks,
                                 rows * elements};
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (dtype == kFloat32) {
    launch<float>(params, on);
  } else if (dtype == kFloat16) {
    launch<__half>(params, on);
  } else {
    launch<__nv_bfloat16>(params, on);
  }
  return cudaPeekAtLastError();
}
