// The device code of block_decode_attention on the CPU.
#include "card.h"
//
#include "cuda/block_decode_attention/block_decode_attention.cuh"

namespace bdk {

alignas(16) uint4 decode_memory[kDecodeShared<128> / 16];

template <class T, int kHeadDim, int kRowWarps>
void decode(DecodeParams params, int64_t batch, bool backward) {
  const int rows = params.tokens * params.group;
  params.row_tiles = (rows + 16 * kRowWarps - 1) / (16 * kRowWarps);
  const int64_t blocks = batch * params.kv_heads * params.splits * params.row_tiles;
  emulated::launch(blocks, kDecodeThreads, backward,
                   [&] { decode_kernel<T, kHeadDim, kRowWarps>(params); });
  if (params.splits == 1) return;
  const int64_t out_rows = batch * params.kv_heads * rows;
  emulated::launch((out_rows + kDecodeWarps - 1) / kDecodeWarps, kDecodeThreads, backward,
                   [&] { combine_kernel<T>(params, out_rows, params.kv_heads * rows); });
}

template <class T, int kRowWarps>
void decode_any(const DecodeParams& params, int64_t batch, bool backward) {
  if (params.head_dim <= 32) return decode<T, 32, kRowWarps>(params, batch, backward);
  if (params.head_dim <= 64) return decode<T, 64, kRowWarps>(params, batch, backward);
  if (params.head_dim <= 96) return decode<T, 96, kRowWarps>(params, batch, backward);
  decode<T, 128, kRowWarps>(params, batch, backward);
}

template <class T>
void decode_rows(const DecodeParams& params, int64_t batch, bool backward) {
  if (params.tokens * params.group <= 16) return decode_any<T, 1>(params, batch, backward);
  decode_any<T, kDecodeWarps>(params, batch, backward);
}

}  // namespace bdk

// sizes: batch, tokens, heads, kv_heads, head_dim, cache_tokens, splits, then the strides of q, k
// and v; tensors are otherwise as for bdk_block_decode_attention_cuda.
extern "C" void decode(const void* q, const void* k, const void* v, const int* lengths, void* out,
                       float* sums, float* top, float* total, const int64_t* sizes, float scale,
                       int bfloat16, int backward) {
  using namespace bdk;
  const auto size = [&](int i) { return static_cast<int>(sizes[i]); };
  const DecodeParams params{q,
                            k,
                            v,
                            lengths,
                            out,
                            sums,
                            top,
                            total,
                            sizes[7],
                            sizes[8],
                            sizes[9],
                            sizes[10],
                            sizes[11],
                            sizes[12],
                            sizes[13],
                            sizes[14],
                            sizes[15],
                            size(1),
                            size(2) / size(3),
                            size(3),
                            size(4),
                            size(5),
                            size(6),
                            0,
                            scale};
  if (bfloat16 != 0) {
    decode_rows<__nv_bfloat16>(params, sizes[0], backward != 0);
  } else {
    decode_rows<__half>(params, sizes[0], backward != 0);
  }
}
