// block_decode_attention in clusters: choose the kernel, launch it.
#include "cuda/block_decode_attention/block_decode_attention_sm90.cuh"
#include "cuda/block_decode_attention/block_decode_attention_sm90.h"

namespace bdk {
namespace {

template <class T, int kHeadDim, int kRowWarps>
cudaError_t attend(const DecodeParams& params, int blocks, const LaunchSm90& how) {
  return launch_sm90(decode_cluster_kernel<T, kHeadDim, kRowWarps>, params, blocks, kDecodeThreads,
                     decode_cluster_shared<kHeadDim, kRowWarps>(params.splits), params.splits, how);
}

template <class T, int kRowWarps>
cudaError_t attend_any(const DecodeParams& params, int blocks, const LaunchSm90& how) {
  if (params.head_dim <= 32) return attend<T, 32, kRowWarps>(params, blocks, how);
  if (params.head_dim <= 64) return attend<T, 64, kRowWarps>(params, blocks, how);
  if (params.head_dim <= 96) return attend<T, 96, kRowWarps>(params, blocks, how);
  return attend<T, 128, kRowWarps>(params, blocks, how);
}

}  // namespace

template <class T>
cudaError_t decode_in_clusters(const DecodeParams& params, int blocks, const LaunchSm90& how) {
  return params.tokens * params.group <= 16 ? attend_any<T, 1>(params, blocks, how)
                                            : attend_any<T, kDecodeWarps>(params, blocks, how);
}

template cudaError_t decode_in_clusters<__half>(const DecodeParams&, int, const LaunchSm90&);
template cudaError_t decode_in_clusters<__nv_bfloat16>(const DecodeParams&, int, const LaunchSm90&);

}  // namespace bdk
