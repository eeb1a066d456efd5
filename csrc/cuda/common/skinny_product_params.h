// Arguments of skinny_product. Tensors without a dtype of their own are float16 or bfloat16.
#pragma once

#include "cuda/common/skinny_product_config.h"

namespace bdk {

// How queries and keys are normalized and rotated, and where they and the values go.
struct SkinnyRope {
  void *q, *k_cache, *v_cache;  // q: [batch, tokens, heads, head_dim]
  const int* position;          // [batch]
  const float* freqs;           // [positions, head_dim / 2, 2]
  int64_t k_batch, k_token, k_head;
  int64_t v_batch, v_token, v_head;
  int tokens, heads, kv_heads, head_dim;
  bool interleaved;             // pairs of channels (2 i, 2 i + 1), else (i, i + head_dim / 2)
  const void *q_norm, *k_norm;  // [head_dim], weights of an RMSNorm of a head, or null
  int q_norm_dtype, k_norm_dtype;
};

struct SkinnyParams {
  const void* weight;  // [features / 16][channels / 16][32] fragments, see pack_weight
  bool float8;         // whether weight is; each tile has its scales in a step of its own
  const void* bias;    // [features] or null
  const void* x;
  const float2* moments;                // [rows][channels / 16], or null: computed from x
  const void *scale, *shift;            // rows, or null
  const void *norm_weight, *norm_bias;  // [channels] or null
  int norm_weight_dtype, norm_bias_dtype;
  const void *residual, *gate;  // rows; gate may be null
  void* y;                      // [rows][features], [rows][features / 2] with SwiGLU
  float2* y_moments;            // [rows][features / 16] or null
  SkinnyRope rope;
  int64_t x_stride, scale_stride, shift_stride, residual_stride, gate_stride;
  int rows, channels, features;
  int norm, epilogue;  // SkinnyNorm, SkinnyEpilogue
  int tiles, parts;    // of a block; it has a warp for each pair
  int group;           // adjacent tiles that are finished together: 1, or those of a head
  int split;           // blocks of a cluster
  int depth;           // steps of a part at a time, at most kSteps
  float eps;
};

}  // namespace bdk
