// finalize_bits: choose the kernel, launch it.
#include "bitdance_kernels_cuda.h"
#include "common/dtype.h"
#include "cuda/common/launch.h"
#include "cuda/finalize_bits/finalize_bits.cuh"

namespace bdk {
namespace {

template <class T, class Pattern>
void launch(const FinalizeBitsParams& params, Pattern one, cudaStream_t stream) {
  const bool vector = reinterpret_cast<uintptr_t>(params.x0) % 16 == 0;
  const unsigned int blocks = grid_blocks(params.bytes, kFinalizeBitsThreads);
  const auto kernel =
      vector ? finalize_bits_kernel<T, Pattern, true> : finalize_bits_kernel<T, Pattern, false>;
  kernel<<<blocks, kFinalizeBitsThreads, 0, stream>>>(params, one);
}

}  // namespace
}  // namespace bdk

int bdk_finalize_bits_cuda(const void* x0, const float* cfg_or_null, void* signs, uint8_t* packed,
                           int64_t values, int dtype, int device, void* stream) {
  using namespace bdk;
  if (!is_dtype(dtype)) return BDK_BAD_DTYPE;
  if (values < 0 || values % 8 != 0) return BDK_BAD_SIZE;
  if (values == 0) return BDK_OK;
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  const FinalizeBitsParams params{x0, cfg_or_null, signs, packed, values / 8};
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (dtype == kFloat32) {
    launch<float>(params, kOne32, on);
  } else if (dtype == kFloat16) {
    launch<__half>(params, kOne16, on);
  } else {
    launch<__nv_bfloat16>(params, kOneB16, on);
  }
  return cudaPeekAtLastError();
}
