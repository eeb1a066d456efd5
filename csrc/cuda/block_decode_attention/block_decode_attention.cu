// block_decode_attention: choose the kernel, launch it, and the one that combines the splits.
#include "bitdance_kernels_cuda.h"
#include "common/dtype.h"
#include "cuda/block_decode_attention/block_decode_attention.cuh"
#include "cuda/block_decode_attention/block_decode_attention_sm90.h"
#include "cuda/common/launch.h"

namespace bdk {
namespace {

template <class T, int kHeadDim, int kRowWarps>
cudaError_t attend(const DecodeParams& params, unsigned int blocks, cudaStream_t stream) {
  const auto kernel = decode_kernel<T, kHeadDim, kRowWarps>;
  constexpr int kShared = kDecodeShared<kHeadDim>;
  if constexpr (kShared > 48 * 1024) {  // default limit of a block
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    if (status != cudaSuccess) return status;
  }
  kernel<<<blocks, kDecodeThreads, kShared, stream>>>(params);
  return cudaPeekAtLastError();
}

template <class T, int kRowWarps>
cudaError_t attend_any(const DecodeParams& params, unsigned int blocks, cudaStream_t stream) {
  if (params.head_dim <= 32) return attend<T, 32, kRowWarps>(params, blocks, stream);
  if (params.head_dim <= 64) return attend<T, 64, kRowWarps>(params, blocks, stream);
  if (params.head_dim <= 96) return attend<T, 96, kRowWarps>(params, blocks, stream);
  return attend<T, 128, kRowWarps>(params, blocks, stream);
}

template <class T>
cudaError_t decode(DecodeParams params, int64_t batch, bool in_clusters, const LaunchSm90& how) {
  const int rows = params.tokens * params.group;
  const int row_warps = rows <= 16 ? 1 : kDecodeWarps;
  params.row_tiles = (rows + 16 * row_warps - 1) / (16 * row_warps);
  const int64_t blocks = batch * params.kv_heads * params.splits * params.row_tiles;
  const int64_t out_rows = batch * params.kv_heads * rows;
  if (blocks > INT32_MAX || out_rows > INT32_MAX) return cudaErrorInvalidValue;
  if (in_clusters) return decode_in_clusters<T>(params, static_cast<int>(blocks), how);
  const cudaStream_t stream = static_cast<cudaStream_t>(how.stream);
  const unsigned int count = static_cast<unsigned int>(blocks);
  const cudaError_t status = row_warps == 1 ? attend_any<T, 1>(params, count, stream)
                                            : attend_any<T, kDecodeWarps>(params, count, stream);
  if (status != cudaSuccess || params.splits == 1) return status;
  const int64_t combining = (out_rows + kDecodeWarps - 1) / kDecodeWarps;
  combine_kernel<T><<<static_cast<unsigned int>(combining), kDecodeThreads, 0, stream>>>(
      params, out_rows, params.kv_heads * rows);
  return cudaPeekAtLastError();
}

}  // namespace
}  // namespace bdk

int bdk_block_decode_attention_cuda(const void* q, const void* k_cache, const void* v_cache,
                                    const int32_t* lengths, void* out, float* sums, float* top,
                                    float* total, int64_t batch, int64_t tokens, int64_t heads,
                                    int64_t kv_heads, int64_t head_dim, int64_t cache_tokens,
                                    int64_t splits, int64_t q_batch, int64_t q_token,
                                    int64_t q_head, int64_t k_batch, int64_t k_token,
                                    int64_t k_head, int64_t v_batch, int64_t v_token,
                                    int64_t v_head, float scale, int dtype, int in_clusters,
                                    int programmatic, int device, void* stream) {
  using namespace bdk;
  if (dtype != kFloat16 && dtype != kBFloat16) return BDK_BAD_DTYPE;
  if (batch < 0 || tokens < 0 || kv_heads < 1 || heads < kv_heads || heads % kv_heads != 0 ||
      heads > INT32_MAX / (tokens > 0 ? tokens : 1)) {
    return BDK_BAD_SIZE;
  }
  if (head_dim < 8 || head_dim > 128 || head_dim % 8 != 0 || cache_tokens < 0 ||
      cache_tokens > INT32_MAX - kDecodeKeys || splits < 1 ||
      splits > (in_clusters != 0 ? kDecodeMaxCluster : kDecodeMaxSplits)) {
    return BDK_BAD_SIZE;
  }
  if (batch == 0 || tokens == 0) return BDK_OK;
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  const DecodeParams params{q,
                            k_cache,
                            v_cache,
                            lengths,
                            out,
                            sums,
                            top,
                            total,
                            q_batch,
                            q_token,
                            q_head,
                            k_batch,
                            k_token,
                            k_head,
                            v_batch,
                            v_token,
                            v_head,
                            static_cast<int>(tokens),
                            static_cast<int>(heads / kv_heads),
                            static_cast<int>(kv_heads),
                            static_cast<int>(head_dim),
                            static_cast<int>(cache_tokens),
                            static_cast<int>(splits),
                            /*row_tiles=*/0,
                            scale};
  const LaunchSm90 how{device, stream, programmatic != 0};
  return dtype == kFloat16 ? decode<__half>(params, batch, in_clusters != 0, how)
                           : decode<__nv_bfloat16>(params, batch, in_clusters != 0, how);
}
