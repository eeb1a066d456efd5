// noise: launch the kernel.
#include "bitdance_kernels_cuda.h"
#include "cuda/common/launch.h"
#include "cuda/common/noise.cuh"

int bdk_noise_cuda(const int64_t* keys, int64_t rows, int64_t elements, const int64_t* step,
                   float* normals, uint32_t* words_or_null, int device, void* stream) {
  using namespace bdk;
  constexpr int64_t kMaxElements = int64_t{1} << 34;  // 32 bits count blocks of four
  if (rows < 0 || elements < 0 || elements > kMaxElements) return BDK_BAD_SIZE;
  if (rows == 0 || elements == 0) return BDK_OK;
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  const int64_t row_blocks = (elements + 3) / 4;
  const NoiseParams params{keys,     step,       normals,          words_or_null,
                           elements, row_blocks, rows * row_blocks};
  noise_kernel<<<grid_blocks(params.blocks, kNoiseThreads), kNoiseThreads, 0,
                 static_cast<cudaStream_t>(stream)>>>(params);
  return cudaPeekAtLastError();
}
