// The device code of block_decode_attention in clusters on the CPU.
#include "card.h"
//
#include "cuda/block_decode_attention/block_decode_attention_sm90.cuh"

namespace bdk {

alignas(16) uint4 decode_memory[1];  // of the kernel without clusters

template <class T, int kHeadDim, int kRowWarps>
const char* decode(DecodeParams params, int64_t batch, uint32_t seed) {
  const int rows = params.tokens * params.group;
  params.row_tiles = (rows + 16 * kRowWarps - 1) / (16 * kRowWarps);
  const int64_t blocks = batch * params.kv_heads * params.splits * params.row_tiles;
  return emulated::launch_clusters(static_cast<int>(blocks), params.splits, kDecodeThreads,
                                   decode_cluster_shared<kHeadDim, kRowWarps>(params.splits), seed,
                                   [&] { decode_cluster_kernel<T, kHeadDim, kRowWarps>(params); });
}

template <class T>
const char* decode_any(const DecodeParams& params, int64_t batch, uint32_t seed) {
  if (params.tokens * params.group > 16) return decode<T, 64, kDecodeWarps>(params, batch, seed);
  if (params.head_dim <= 32) return decode<T, 32, 1>(params, batch, seed);
  return decode<T, 64, 1>(params, batch, seed);
}

}  // namespace bdk

// tensors: q, k, v, lengths, out; all but the last are written by the kernel before this one, so
// many bytes of each. sizes: batch, tokens, heads, kv_heads, head_dim, cache_tokens, splits, then
// the strides of q, k and v. head_dim is 64 at most.
extern "C" const char* decode(void* const* tensors, const int64_t* late_bytes, const int64_t* sizes,
                              float scale, int bfloat16, uint32_t seed) {
  using namespace bdk;
  const auto size = [&](int i) { return static_cast<int>(sizes[i]); };
  DecodeParams params{};
  params.q = tensors[0];
  params.k = tensors[1];
  params.v = tensors[2];
  params.lengths = static_cast<const int*>(tensors[3]);
  params.out = tensors[4];
  params.q_batch = sizes[7];
  params.q_token = sizes[8];
  params.q_head = sizes[9];
  params.k_batch = sizes[10];
  params.k_token = sizes[11];
  params.k_head = sizes[12];
  params.v_batch = sizes[13];
  params.v_token = sizes[14];
  params.v_head = sizes[15];
  params.tokens = size(1);
  params.group = size(2) / size(3);
  params.kv_heads = size(3);
  params.head_dim = size(4);
  params.cache_tokens = size(5);
  params.splits = size(6);
  params.scale = scale;
  for (int i = 0; i < 4; ++i) {
    if (late_bytes[i] > 0) emulated::late_input(tensors[i], late_bytes[i]);
  }
  return bfloat16 != 0 ? decode_any<__nv_bfloat16>(params, sizes[0], seed)
                       : decode_any<__half>(params, sizes[0], seed);
}
