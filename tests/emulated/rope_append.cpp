// The device code of rope_append on the CPU.
#include "card.h"
//
#include "cuda/rope_append/rope_append.cuh"

namespace bdk {

template <class T>
void run(const RopeAppendParams& params, bool interleaved) {
  const unsigned int per_block = kRopeThreads / params.lanes;
  emulated::launch((params.items + per_block - 1) / per_block, kRopeThreads, false, [&] {
    interleaved ? rope_append_kernel<T, true>(params) : rope_append_kernel<T, false>(params);
  });
}

}  // namespace bdk

// tensors: qkv, q, k_cache, v_cache, position, freqs, q_norm, k_norm; sizes: batch, tokens, heads,
// kv_heads, head_dim, then two strides of qkv, three of each cache, then the dtypes of qkv, freqs,
// q_norm and k_norm.
extern "C" void rope_append(void* const* tensors, const int64_t* sizes, float eps,
                            int interleaved) {
  using namespace bdk;
  const auto size = [&](int i) { return static_cast<int>(sizes[i]); };
  RopeAppendParams params{};
  params.qkv = tensors[0];
  params.q = tensors[1];
  params.k_cache = tensors[2];
  params.v_cache = tensors[3];
  params.position = static_cast<const int*>(tensors[4]);
  params.freqs = tensors[5];
  params.q_norm = tensors[6];
  params.k_norm = tensors[7];
  params.items = size(0) * size(1) * (size(2) + 2 * size(3));
  params.tokens = size(1);
  params.heads = size(2);
  params.kv_heads = size(3);
  params.head_dim = size(4);
  params.qkv_batch = sizes[5];
  params.qkv_token = sizes[6];
  params.k_batch = sizes[7];
  params.k_token = sizes[8];
  params.k_head = sizes[9];
  params.v_batch = sizes[10];
  params.v_token = sizes[11];
  params.v_head = sizes[12];
  params.lanes = 1;
  while (params.lanes < params.head_dim / (2 * kRopePairs)) params.lanes *= 2;
  params.freqs_dtype = size(14);
  params.q_norm_dtype = size(15);
  params.k_norm_dtype = size(16);
  params.eps = eps;
  if (size(13) == kFloat32) return run<float>(params, interleaved != 0);
  if (size(13) == kFloat16) return run<__half>(params, interleaved != 0);
  run<__nv_bfloat16>(params, interleaved != 0);
}
