// unpack_signs: choose the kernel, launch it.
#include "bitdance_kernels_cuda.h"
#include "common/dtype.h"
#include "cuda/common/launch.h"
#include "cuda/unpack_signs/unpack_signs.cuh"

namespace bdk {
namespace {

template <class Pattern>
void launch(const UnpackSignsParams& params, Pattern one, cudaStream_t stream) {
  const bool even = params.row_stride == params.row_bytes;
  const unsigned int blocks =
      grid_blocks(params.bytes, int64_t{kUnpackSignsThreads} * kUnpackSignsUnroll);
  const auto kernel =
      even ? unpack_signs_kernel<Pattern, true> : unpack_signs_kernel<Pattern, false>;
  kernel<<<blocks, kUnpackSignsThreads, 0, stream>>>(params, one);
}

}  // namespace
}  // namespace bdk

int bdk_unpack_signs_cuda(const uint8_t* packed, void* y, int64_t rows, int64_t channels,
                          int64_t row_stride, int dtype, int device, void* stream) {
  using namespace bdk;
  if (!is_dtype(dtype)) return BDK_BAD_DTYPE;
  if (rows < 0 || channels <= 0 || channels % 8 != 0) return BDK_BAD_SIZE;
  if (rows == 0) return BDK_OK;
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  const UnpackSignsParams params{packed, y, rows * (channels / 8), channels / 8, row_stride};
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (dtype == kFloat32) {
    launch<uint32_t>(params, kOne32, on);
  } else {
    launch<uint16_t>(params, dtype == kFloat16 ? kOne16 : kOneB16, on);
  }
  return cudaPeekAtLastError();
}
