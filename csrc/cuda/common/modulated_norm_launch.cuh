// Host side of adaln_norm and gated_residual: the format of a call, its grid, its launches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include <initializer_list>

#include "bitdance_kernels_cuda.h"
#include "cuda/common/launch.h"
#include "cuda/common/modulated_norm.cuh"

namespace bdk {

// BDK_OK if the row kernels can take these tensors; one without data is absent.
inline int check_rows(std::initializer_list<bdk_rows> tensors, int64_t rows, int64_t channels) {
  for (const bdk_rows& tensor : tensors) {
    if (tensor.data != nullptr && !is_dtype(tensor.dtype)) return BDK_BAD_DTYPE;
  }
  if (rows < 0 || channels <= 0 || channels > kMaxRowChannels) return BDK_BAD_SIZE;
  return BDK_OK;
}

// Calls body(Format()): Packed where every row of `tensors` is of one dtype and can be read 16
// bytes at a time, and weight and bias, of any dtype, start at such an address.
template <class Body>
void with_format(std::initializer_list<bdk_rows> tensors, const bdk_rows& weight,
                 const bdk_rows& bias, int64_t channels, const Body& body) {
  const int dtype = tensors.begin()->dtype;
  const int64_t width = dtype == kFloat32 ? 4 : 8;  // values of 16 bytes
  const auto aligned = [](const bdk_rows& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0;
  };
  bool packed = channels % kWidth == 0 && aligned(weight) && aligned(bias);
  for (const bdk_rows& tensor : tensors) {
    packed = packed && tensor.dtype == dtype && aligned(tensor) && tensor.stride % width == 0;
  }
  if (!packed) {
    body(Single());
  } else if (dtype == kFloat32) {
    body(Packed<float>());
  } else if (dtype == kFloat16) {
    body(Packed<__half>());
  } else {
    body(Packed<__nv_bfloat16>());
  }
}

struct RowGrid {
  unsigned int blocks;
  dim3 threads;
  int64_t teams() const { return int64_t{blocks} * threads.y; }
};

// Enough warps for a row; few rows get a block each, so that they spread over the GPU.
inline RowGrid row_grid(int64_t rows, int64_t channels) {
  const int64_t warps = (channels + kWarpChannels - 1) / kWarpChannels;
  const unsigned int together = warps == 1 && rows >= kManyRows ? kBlockRows : 1;
  return {grid_blocks(rows, together), dim3(static_cast<unsigned int>(32 * warps), together)};
}

template <bool kSum, bool kNorm>
int launch_modulated_norm(ModulatedNormParams params, std::initializer_list<bdk_rows> tensors,
                          int device, void* stream) {
  if (params.rows == 0) return BDK_OK;
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  const RowGrid grid = row_grid(params.rows, params.channels);
  params.teams = grid.teams();
  with_format(tensors, params.weight, params.bias, params.channels, [&](auto format) {
    modulated_norm_kernel<decltype(format), kSum, kNorm>
        <<<grid.blocks, grid.threads, 0, static_cast<cudaStream_t>(stream)>>>(params);
  });
  return cudaPeekAtLastError();
}

// grad_weight and grad_bias: without data where the gradient is not wanted. With either of weight
// and bias given, `slices` teams share out the rows, and params.partial holds as many sums.
template <bool kSum, bool kNorm>
int launch_modulated_norm_backward(ModulatedNormBackwardParams params,
                                   std::initializer_list<bdk_rows> tensors,
                                   const bdk_rows& grad_weight, const bdk_rows& grad_bias,
                                   int64_t slices, int device, void* stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const bool affine = params.weight.data != nullptr || params.bias.data != nullptr;
  if (affine ? slices < 1 : params.rows == 0) return affine ? BDK_BAD_SIZE : BDK_OK;
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  RowGrid grid = row_grid(affine ? slices : params.rows, params.channels);
  params.teams = affine && slices < grid.teams() ? slices : grid.teams();
  with_format(tensors, params.weight, params.bias, params.channels, [&](auto format) {
    using Format = decltype(format);
    if constexpr (kNorm) {
      if (affine) {
        const auto kernel = modulated_norm_backward_kernel<Format, kSum, kNorm, true>;
        const unsigned int shared = kThreadAffine * grid.threads.x * grid.threads.y * sizeof(float);
        // The rest of the 48 KiB that every kernel may have is for the static workspaces.
        if (shared > 40 * 1024) {
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared));
        }
        kernel<<<grid.blocks, grid.threads, shared, on>>>(params);
        return;
      }
    }
    modulated_norm_backward_kernel<Format, kSum, kNorm, false>
        <<<grid.blocks, grid.threads, 0, on>>>(params);
  });
  if (affine) {
    const int columns = (params.channels + kAffineChannels - 1) / kAffineChannels;
    const dim3 blocks(static_cast<unsigned int>(columns), 2);
    affine_sum_kernel<<<blocks, dim3(kAffineChannels, kAffineLanes), 0, on>>>(
        params.partial, grad_weight, grad_bias, params.teams, params.channels);
  }
  return cudaPeekAtLastError();
}

}  // namespace bdk
