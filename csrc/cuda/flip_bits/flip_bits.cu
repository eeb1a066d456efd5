// flip_bits and flip_signs: choose the kernel, launch it.
#include "bitdance_kernels_cuda.h"
#include "common/dtype.h"
#include "cuda/common/launch.h"
#include "cuda/flip_bits/flip_bits.cuh"

namespace bdk {
namespace {

template <class Pattern>
void launch_signs(const FlipParams& params, cudaStream_t stream) {
  const bool vector = reinterpret_cast<uintptr_t>(params.from) % 16 == 0;
  const unsigned int blocks = grid_blocks(params.bytes, int64_t{kFlipThreads} * kFlipSignsUnroll);
  const auto kernel = vector ? flip_signs_kernel<Pattern, true> : flip_signs_kernel<Pattern, false>;
  kernel<<<blocks, kFlipThreads, 0, stream>>>(params);
}

bool in_range(int64_t threshold) { return threshold >= 0 && threshold <= kMaxFlipThreshold; }

}  // namespace
}  // namespace bdk

int bdk_flip_bits_cuda(const uint8_t* packed, uint8_t* flipped, int64_t bytes, const int64_t* key,
                       int64_t threshold, int device, void* stream) {
  using namespace bdk;
  if (bytes < 0 || !in_range(threshold)) return BDK_BAD_SIZE;
  if (bytes == 0) return BDK_OK;
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  const bool vector =
      (reinterpret_cast<uintptr_t>(packed) | reinterpret_cast<uintptr_t>(flipped)) % 8 == 0;
  const auto kernel = vector ? flip_bits_kernel<true> : flip_bits_kernel<false>;
  kernel<<<grid_blocks(bytes, int64_t{kFlipThreads} * 8), kFlipThreads, 0,
           static_cast<cudaStream_t>(stream)>>>({packed, flipped, bytes, key, threshold});
  return cudaPeekAtLastError();
}

int bdk_flip_signs_cuda(const void* x, void* y, int64_t values, const int64_t* key,
                        int64_t threshold, int dtype, int device, void* stream) {
  using namespace bdk;
  if (!is_dtype(dtype)) return BDK_BAD_DTYPE;
  if (values < 0 || values % 8 != 0 || !in_range(threshold)) return BDK_BAD_SIZE;
  if (values == 0) return BDK_OK;
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  const FlipParams params{x, y, values / 8, key, threshold};
  if (dtype == kFloat32) {
    launch_signs<uint32_t>(params, static_cast<cudaStream_t>(stream));
  } else {
    launch_signs<uint16_t>(params, static_cast<cudaStream_t>(stream));
  }
  return cudaPeekAtLastError();
}
