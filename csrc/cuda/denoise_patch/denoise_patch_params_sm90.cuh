// What denoise_patch reads and writes, and the shared memory of its blocks.
#pragma once

#include <stdint.h>

#include "cuda/denoise_patch/denoise_patch_config.h"

namespace bdk {

// L layers of C channels and H hidden ones; weights lie as pack_weight orders them.
struct DenoisePatchParams {
  const float* x;          // [tokens, kPatchBits]
  const void* modulation;  // [evaluations, rows, width]: by projection (scale, shift, gate), those
                           // of the attention first, then the scale and shift of the last norm; C
                           // channels each
  const float* table;      // [evaluations, 3]
  const uint4 *in_weight, *out_weight;  // [C, kPatchBits], [kPatchBits, C]
  const void *in_bias, *out_bias;       // [C], [kPatchBits]
  const void *norm_weight, *norm_bias;  // [L, C]
  const uint4* weight1;                 // [L, 2 H, C], the rows ordered for SwiGLU
  const void* bias1;                    // [L, 2 H]
  const uint4* weight2;                 // [L, C, H]
  const void* bias2;                    // [L, C]
  // Of the attention of every layer, if layers have one.
  const void *attention_norm_weight, *attention_norm_bias;  // [L, C]
  const uint4* qkv_weight;                                  // [L, 3 C, C]
  const void* qkv_bias;                                     // [L, 3 C]
  const uint4* wo_weight;                                   // [L, C, C]
  const void* wo_bias;                                      // [L, C]
  const float* cfg;                                         // one, or null without guidance
  const float* noise;   // [evaluations, tokens, kPatchBits], or null
  const int64_t* keys;  // [tokens / patch, 3], where noise is null
  float* y;             // [tokens, kPatchBits]
  int* status;          // becomes 1 where a block waited in vain
  uint4* words;         // as Exchange takes them
  int64_t width;
  int rows, tokens, patch;               // rows = tokens, or 2 tokens with guidance
  int layers, projections, evaluations;  // projections that a layer takes, at most `layers`
  int max_polls;
  float eps;
  bool squash;
};

template <class T, int kC, int kH, int kRows, bool kAttention>
struct DenoisePatchShared {
  static constexpr int kGroups = kRows / 8;
  static constexpr int kPitch = (kC > kH ? kC : kH) + 8;  // 8 rows begin in different banks
  static constexpr int kResults = kAttention ? 16 : 8;    // features of a tile of the first product

  T n[kRows][kPitch];  // input of a product
  float4 partial[kPatchTiles][kGroups][kPatchWarps][32];
  alignas(16) T results[kPatchTiles][kRows][kResults];  // of the first product in this block
  alignas(16) T stream[kRows][16];  // features of the stream that this block owns
  alignas(16) float state[kRows][kPatchBits];
  float x0[kRows][kPatchBits];
};

// Shared memory of the weights before and after the blocks, where it has room for them.
template <int kC>
struct DenoisePatchResident {
  uint4 in[kC / 16][kPatchBits / 16][32];
  uint4 out[kPatchBits / 16][kC / 16][32];
};

}  // namespace bdk
