// patch_attention: choose the kernel, launch it.
#include "bitdance_kernels_cuda.h"
#include "cuda/common/launch.h"
#include "cuda/patch_attention/patch_attention.cuh"

namespace bdk {
namespace {

template <int kHeadDim, int kWarps>
cudaError_t launch(const PatchParams& params, unsigned int blocks, cudaStream_t stream) {
  const auto kernel = patch_attention_kernel<kHeadDim, kWarps>;
  constexpr int kShared = kPatchShared<kHeadDim, kWarps>;
  if constexpr (kShared > 48 * 1024) {  // default limit of a block
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    if (status != cudaSuccess) return status;
  }
  kernel<<<blocks, 32 * kWarps, kShared, stream>>>(params);
  return cudaPeekAtLastError();
}

template <int kHeadDim>
cudaError_t attend(const PatchParams& params, unsigned int blocks, cudaStream_t stream) {
  if (params.patch <= kPatchQueries) return launch<kHeadDim, 1>(params, blocks, stream);
  if (params.patch <= 2 * kPatchQueries) return launch<kHeadDim, 2>(params, blocks, stream);
  return launch<kHeadDim, kPatchMaxWarps>(params, blocks, stream);
}

}  // namespace
}  // namespace bdk

int bdk_patch_attention_cuda(const float* qkv, int64_t stride, float* out, int64_t rows,
                             int64_t patch, int64_t heads, int64_t head_dim, int device,
                             void* stream) {
  using namespace bdk;
  if (rows < 0 || patch < 0 || patch > kPatchMaxWarps * kPatchQueries || heads < 1 ||
      head_dim < 4 || head_dim > 128 || head_dim % 4 != 0 || stride % 4 != 0) {
    return BDK_BAD_SIZE;
  }
  if (heads > INT32_MAX / head_dim || rows > INT32_MAX / heads) return BDK_BAD_SIZE;
  if (rows == 0 || patch == 0) return BDK_OK;
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  const float scale = 1.44269504f / sqrtf(static_cast<float>(head_dim));
  const PatchParams params{qkv,
                           out,
                           stride,
                           static_cast<int>(patch),
                           static_cast<int>(heads),
                           static_cast<int>(head_dim),
                           scale};
  const unsigned int blocks = static_cast<unsigned int>(rows * heads);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  return head_dim <= 64 ? attend<64>(params, blocks, on) : attend<128>(params, blocks, on);
}
