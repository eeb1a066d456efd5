// rope_append: choose the kernel, launch it.
#include "bitdance_kernels_cuda.h"
#include "cuda/common/launch.h"
#include "cuda/rope_append/rope_append.cuh"

namespace bdk {
namespace {

template <class T>
void launch(const RopeAppendParams& params, bool interleaved, cudaStream_t stream) {
  const unsigned int per_block = kRopeThreads / params.lanes;
  const unsigned int blocks = (params.items + per_block - 1) / per_block;
  const auto kernel = interleaved ? rope_append_kernel<T, true> : rope_append_kernel<T, false>;
  kernel<<<blocks, kRopeThreads, 0, stream>>>(params);
}

}  // namespace
}  // namespace bdk

int bdk_rope_append_cuda(const void* qkv, void* q, void* k_cache, void* v_cache,
                         const int32_t* position, const void* freqs, const void* q_norm_or_null,
                         const void* k_norm_or_null, int64_t batch, int64_t tokens, int64_t heads,
                         int64_t kv_heads, int64_t head_dim, int64_t qkv_batch, int64_t qkv_token,
                         int64_t k_batch, int64_t k_token, int64_t k_head, int64_t v_batch,
                         int64_t v_token, int64_t v_head, float eps, int interleaved, int dtype,
                         int freqs_dtype, int q_norm_dtype, int k_norm_dtype, int device,
                         void* stream) {
  using namespace bdk;
  for (const int code : {dtype, freqs_dtype, q_norm_dtype, k_norm_dtype}) {
    if (!is_dtype(code)) return BDK_BAD_DTYPE;
  }
  if (batch < 0 || tokens < 0 || heads < 1 || kv_heads < 1 || head_dim < 8 ||
      head_dim > kRopeMaxHeadDim || head_dim % 8 != 0) {
    return BDK_BAD_SIZE;
  }
  if (batch == 0 || tokens == 0) return BDK_OK;
  const int64_t all_heads = heads + 2 * kv_heads;
  if (all_heads > INT32_MAX || tokens > INT32_MAX / all_heads ||
      batch > INT32_MAX / (tokens * all_heads)) {
    return BDK_BAD_SIZE;
  }
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  RopeAppendParams params{};
  params.qkv = qkv;
  params.q = q;
  params.k_cache = k_cache;
  params.v_cache = v_cache;
  params.position = position;
  params.freqs = freqs;
  params.q_norm = q_norm_or_null;
  params.k_norm = k_norm_or_null;
  params.qkv_batch = qkv_batch;
  params.qkv_token = qkv_token;
  params.k_batch = k_batch;
  params.k_token = k_token;
  params.k_head = k_head;
  params.v_batch = v_batch;
  params.v_token = v_token;
  params.v_head = v_head;
  params.items = static_cast<unsigned int>(batch * tokens * all_heads);
  params.tokens = static_cast<int>(tokens);
  params.heads = static_cast<int>(heads);
  params.kv_heads = static_cast<int>(kv_heads);
  params.head_dim = static_cast<int>(head_dim);
  params.lanes = 1;
  while (params.lanes < params.head_dim / (2 * kRopePairs)) params.lanes *= 2;
  params.freqs_dtype = freqs_dtype;
  params.q_norm_dtype = q_norm_dtype;
  params.k_norm_dtype = k_norm_dtype;
  params.eps = eps;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (dtype == kFloat32) {
    launch<float>(params, interleaved != 0, on);
  } else if (dtype == kFloat16) {
    launch<__half>(params, interleaved != 0, on);
  } else {
    launch<__nv_bfloat16>(params, interleaved != 0, on);
  }
  return cudaPeekAtLastError();
}
