// pack_signs: choose the kernel, launch it.
#include "bitdance_kernels_cuda.h"
#include "cuda/common/launch.h"
#include "cuda/pack_signs/pack_signs.cuh"

namespace bdk {
namespace {

template <class Pattern>
void launch(const PackSignsParams& params, Pattern infinity, cudaStream_t stream) {
  constexpr int64_t kWord = sizeof(typename Vec8<Pattern>::Word);
  const bool vector = reinterpret_cast<uintptr_t>(params.x) % kWord == 0 &&
                      params.row_stride * sizeof(Pattern) % kWord == 0;
  const bool even = params.row_stride == params.row_bytes * 8;
  const unsigned int blocks =
      grid_blocks(params.bytes, int64_t{kPackSignsThreads} * kPackSignsUnroll);
  const auto kernel = vector ? (even ? pack_signs_kernel<Pattern, true, true>
                                     : pack_signs_kernel<Pattern, true, false>)
                             : (even ? pack_signs_kernel<Pattern, false, true>
                                     : pack_signs_kernel<Pattern, false, false>);
  kernel<<<blocks, kPackSignsThreads, 0, stream>>>(params, infinity);
}

}  // namespace
}  // namespace bdk

int bdk_pack_signs_cuda(const void* x, uint8_t* packed, int64_t rows, int64_t channels,
                        int64_t row_stride, int dtype, int device, void* stream) {
  using namespace bdk;
  if (!is_dtype(dtype) && dtype != kUint8) return BDK_BAD_DTYPE;
  if (rows < 0 || channels <= 0 || channels % 8 != 0) return BDK_BAD_SIZE;
  if (rows == 0) return BDK_OK;
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  const PackSignsParams params{x, packed, rows * (channels / 8), channels / 8, row_stride};
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (dtype == kFloat32) {
    launch<uint32_t>(params, kInfinity32, on);
  } else if (dtype == kUint8) {
    launch<uint8_t>(params, kMaxUint8, on);
  } else {
    launch<uint16_t>(params, dtype == kFloat16 ? kInfinity16 : kInfinityB16, on);
  }
  return cudaPeekAtLastError();
}
