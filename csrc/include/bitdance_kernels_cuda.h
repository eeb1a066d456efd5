// Every C function of the CUDA library, once; conventions and types are those of
// bitdance_kernels.h.
#pragma once

#include "bitdance_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

const char* bdk_cuda_status_string(int status);

// Number of usable devices, never a status: 0 without a driver.
int bdk_cuda_device_count(void);

int bdk_pack_signs_cuda(const void* x, uint8_t* packed, int64_t rows, int64_t channels,
                        int64_t row_stride, int dtype, int device, void* stream);

int bdk_unpack_signs_cuda(const uint8_t* packed, void* y, int64_t rows, int64_t channels,
                          int64_t row_stride, int dtype, int device, void* stream);

// As bdk_flip_bits_cpu and bdk_flip_signs_cpu, from byte 0 on; `key` is on the device.
int bdk_flip_bits_cuda(const uint8_t* packed, uint8_t* flipped, int64_t bytes, const int64_t* key,
                       int64_t threshold, int device, void* stream);
int bdk_flip_signs_cuda(const void* x, void* y, int64_t values, const int64_t* key,
                        int64_t threshold, int dtype, int device, void* stream);

// a: [queries, width] bytes, one row every a_stride; b: [codes, width]; distance: [queries, codes].
int bdk_hamming_distance_cuda(const uint8_t* a, const uint8_t* b, int32_t* distance,
                              int64_t queries, int64_t codes, int64_t width, int64_t a_stride,
                              int64_t b_stride, int device, void* stream);

// index, distance: [queries, k]; width is at most 1024.
int bdk_nearest_codes_cuda(const uint8_t* a, const uint8_t* b, int64_t* index, int32_t* distance,
                           int64_t queries, int64_t codes, int64_t width, int64_t a_stride,
                           int64_t b_stride, int64_t k, int device, void* stream);

// q, out: [batch, tokens, heads, head_dim], out contiguous; k_cache, v_cache: [batch, cache_tokens,
// kv_heads, head_dim]; lengths: [batch]. head_dim is a multiple of 8 up to 128; all rows start at
// multiples of 16 bytes. dtype: float16 or bfloat16. `scale` is multiplied by log2(e) already. With
// more than one split (64 at most), sums: [batch, tokens, heads, splits, head_dim], top and total:
// the same without head_dim, are scratch. `in_clusters`: the splits (8 at most) are the blocks of a
// cluster and need no scratch; then `programmatic` is as for bdk_skinny_product_cuda. On cards of
// compute capability 9.0 or 10.x.
int bdk_block_decode_attention_cuda(const void* q, const void* k_cache, const void* v_cache,
                                    const int32_t* lengths, void* out, float* sums, float* top,
                                    float* total, int64_t batch, int64_t tokens, int64_t heads,
                                    int64_t kv_heads, int64_t head_dim, int64_t cache_tokens,
                                    int64_t splits, int64_t q_batch, int64_t q_token,
                                    int64_t q_head, int64_t k_batch, int64_t k_token,
                                    int64_t k_head, int64_t v_batch, int64_t v_token,
                                    int64_t v_head, float scale, int dtype, int in_clusters,
                                    int programmatic, int device, void* stream);

// As bdk_patch_attention_cpu, with a token every `stride` values; head_dim is a multiple of 4, and
// every token starts at a multiple of 16 bytes.
int bdk_patch_attention_cuda(const float* qkv, int64_t stride, float* out, int64_t rows,
                             int64_t patch, int64_t heads, int64_t head_dim, int device,
                             void* stream);

// qkv: [batch, tokens, heads + 2 kv_heads, head_dim], its heads adjacent; q: [batch, tokens, heads,
// head_dim]; k_cache, v_cache: [batch, cache_tokens, kv_heads, head_dim], written from row
// position[b] on; freqs: [positions, head_dim / 2, 2]; norms: [head_dim]. head_dim is a multiple of
// 8 up to 256; all heads start at multiples of 16 bytes.
int bdk_rope_append_cuda(const void* qkv, void* q, void* k_cache, void* v_cache,
                         const int32_t* position, const void* freqs, const void* q_norm_or_null,
                         const void* k_norm_or_null, int64_t batch, int64_t tokens, int64_t heads,
                         int64_t kv_heads, int64_t head_dim, int64_t qkv_batch, int64_t qkv_token,
                         int64_t k_batch, int64_t k_token, int64_t k_head, int64_t v_batch,
                         int64_t v_token, int64_t v_head, float eps, int interleaved, int dtype,
                         int freqs_dtype, int q_norm_dtype, int k_norm_dtype, int device,
                         void* stream);
// Rows that bdk_denoise_patch_cuda takes at most for a head of these widths, with `heads` of
// attention or 0, on `device`; 0 if it has no kernel for them, or the card has too few
// multiprocessors.
int bdk_denoise_patch_max_rows(int64_t channels, int64_t hidden, int64_t heads, int device);

// All evaluations of a head of `layers` modulated SwiGLU blocks and the steps between them, in one
// cooperative launch. With C channels, H hidden ones, N = rows tokens (rows / 2 with `cfg`, the
// conditional rows first) and states of 32 channels: x, y: [N, 32]; modulation: [evaluations, rows,
// (3 projections + 2) C], (scale, shift, gate) by projection, then scale and shift of the last
// norm; table: [evaluations, 3]; in_weight: [C, 32]; weight1: [layers, 2 H, C]; weight2: [layers,
// C, H]; out_weight: [32, C], all as pack_weight orders them, weight1 for SwiGLU; norms: [layers,
// C]; noise: [evaluations, N, 32], else keys: [N / patch, 3]. With `heads` of 64 channels, an
// attention among the tokens of each patch, at most 16, comes before each block: modulation has
// (6 projections + 2) C, those of the attention first; its norms: [layers, C]; qkv_weight: [layers,
// 3 C, C]; wo_weight: [layers, C, C]. status: one value, becomes 0, or 1 where a block has looked
// for a word of another one more than `max_polls` times; y is NaN then. words: workspace of 8 rows
// max(C, H) values, 10 rows 3 C with attention. Needs compute capability 9.0 or 10.x; float16 and
// bfloat16.
int bdk_denoise_patch_cuda(const float* x, const void* modulation, const float* table,
                           const void* in_weight, const void* in_bias, const void* norm_weight,
                           const void* norm_bias, const void* weight1, const void* bias1,
                           const void* weight2, const void* bias2, const void* out_weight,
                           const void* out_bias, const void* attention_norm_weight_or_null,
                           const void* attention_norm_bias_or_null, const void* qkv_weight_or_null,
                           const void* qkv_bias_or_null, const void* wo_weight_or_null,
                           const void* wo_bias_or_null, const float* cfg_or_null,
                           const float* noise_or_null, const int64_t* keys_or_null, float* y,
                           int32_t* status, void* words, int64_t rows, int64_t patch,
                           int64_t channels, int64_t hidden, int64_t heads, int64_t layers,
                           int64_t projections, int64_t evaluations, float eps, int squash,
                           int max_polls, int dtype, int device, void* stream);
// As bdk_denoise_step_cpu, but a step outside the table is not detected.
int bdk_denoise_step_cuda(const float* x, const void* x0, const float* table, const void* step,
                          int step_bytes, const float* cfg_or_null, const float* noise_or_null,
                          const int64_t* keys_or_null, float* y, int64_t rows, int64_t elements,
                          int dtype, int device, void* stream);

// x0: [2, values] with `cfg`, conditional half first, else [values].
int bdk_finalize_bits_cuda(const void* x0, const float* cfg_or_null, void* signs, uint8_t* packed,
                           int64_t values, int dtype, int device, void* stream);
// As bdk_adaln_norm_cpu, for rows of up to 8192 channels, each tensor with a dtype of its own;
// weight and bias are one row of adjacent values.
int bdk_adaln_norm_cuda(bdk_rows x, bdk_rows scale, bdk_rows shift, bdk_rows weight, bdk_rows bias,
                        bdk_rows y, int64_t rows, int64_t channels, float eps, int device,
                        void* stream);

// partial: workspace [slices, 2, channels], slices >= 1, if weight or bias is given. The order of
// sums over rows depends on rows and slices only.
int bdk_adaln_norm_backward_cuda(bdk_rows grad, bdk_rows x, bdk_rows scale, bdk_rows weight,
                                 bdk_rows bias, bdk_rows grad_x, bdk_rows grad_scale,
                                 bdk_rows grad_shift, bdk_rows grad_weight, bdk_rows grad_bias,
                                 float* partial, int64_t rows, int64_t channels, int64_t slices,
                                 float eps, int device, void* stream);

// y = x + gate h.
int bdk_gated_residual_cuda(bdk_rows x, bdk_rows h, bdk_rows gate, bdk_rows y, int64_t rows,
                            int64_t channels, int device, void* stream);
int bdk_gated_residual_backward_cuda(bdk_rows grad, bdk_rows h, bdk_rows gate, bdk_rows grad_x,
                                     bdk_rows grad_h, bdk_rows grad_gate, int64_t rows,
                                     int64_t channels, int device, void* stream);

// y = x + gate h as it is stored, z = (weight LN(y) + bias) (1 + scale) + shift.
int bdk_gated_residual_adaln_cuda(bdk_rows x, bdk_rows h, bdk_rows gate, bdk_rows scale,
                                  bdk_rows shift, bdk_rows weight, bdk_rows bias, bdk_rows y,
                                  bdk_rows z, int64_t rows, int64_t channels, float eps, int device,
                                  void* stream);
int bdk_gated_residual_adaln_backward_cuda(bdk_rows grad_y, bdk_rows grad_z, bdk_rows y, bdk_rows h,
                                           bdk_rows gate, bdk_rows scale, bdk_rows weight,
                                           bdk_rows bias, bdk_rows grad_x, bdk_rows grad_h,
                                           bdk_rows grad_gate, bdk_rows grad_scale,
                                           bdk_rows grad_shift, bdk_rows grad_weight,
                                           bdk_rows grad_bias, float* partial, int64_t rows,
                                           int64_t channels, int64_t slices, float eps, int device,
                                           void* stream);

// x, y: [images, positions, channels], channels-last maps; weight, bias: [channels]; scale, shift:
// a row for each image; tensors without data are absent. `chunk` is the number of positions of a
// block, n = ceil(positions / chunk). Workspace: moments [images, n, channels, 2], coefficients
// [images, 5, channels].
int bdk_group_norm_silu_cuda(const void* x, void* y, int64_t images, int64_t channels,
                             int64_t positions, int64_t groups, int64_t chunk, bdk_rows weight,
                             bdk_rows bias, bdk_rows scale, bdk_rows shift, int silu, double eps,
                             float* moments, float* coefficients, int dtype, int device,
                             void* stream);

// The gradients of weight and bias, like those of scale and shift, are [images, channels]; the
// caller sums them over the images. More workspace: sums [images, n, channels, 2].
int bdk_group_norm_silu_backward_cuda(const void* grad, const void* x, void* grad_x, int64_t images,
                                      int64_t channels, int64_t positions, int64_t groups,
                                      int64_t chunk, bdk_rows weight, bdk_rows bias, bdk_rows scale,
                                      bdk_rows shift, float* grad_weight_or_null,
                                      float* grad_bias_or_null, float* grad_scale_or_null,
                                      float* grad_shift_or_null, int silu, double eps,
                                      float* moments, float* sums, float* coefficients, int dtype,
                                      int device, void* stream);

// The products of few rows, for sm_90 and newer. x, scale, shift, residual, gate: `rows` rows, at
// most 128, of x's dtype, float16 or bfloat16; those of the first three start at multiples of 16
// bytes. norm: 0 none, 1 LayerNorm, 2 RMSNorm, with norm_weight and norm_bias of any
// dtype, both followed by (1 + scale) n + shift where given;
// moments: [rows, channels / 16, 2], mean and sum of squared deviations of 16 channels of x, or
// null to compute them. weight: [features / 16, channels / 16, 32, 8], see pack_weight; with float8
// bytes of e4m3 [features / 16, channels / 16 + 1, 32, 8], behind each tile the scales of its rows,
// 16 float32. epilogue: 0 none, 1 SwiGLU (y: [rows, features / 2]), 2 y = residual + gate
// (x W^T + b); y_moments: of y. A block has `tiles` tiles of 16 features and `parts` warps for
// each, which divide the channels, as do the `split` (1, 2, 4 or 8) blocks of a cluster.
// programmatic: the kernel starts before the one before it on the stream has ended. Until that one
// has, it reads weight, norm_weight, norm_bias, scale and shift: no kernel since the last one that
// was launched without `programmatic` may write them.
int bdk_skinny_product_cuda(bdk_rows x, const float* moments_or_null, const void* weight,
                            int float8, const void* bias_or_null, int norm, bdk_rows scale,
                            bdk_rows shift, bdk_rows norm_weight, bdk_rows norm_bias, float eps,
                            int epilogue, bdk_rows residual, bdk_rows gate, void* y,
                            float* y_moments_or_null, int64_t rows, int64_t channels,
                            int64_t features, int tiles, int parts, int split, int programmatic,
                            int device, void* stream);

// As above with RMSNorm: queries, keys and values of batch * tokens rows. Heads of queries and keys
// are normalized where q_norm and k_norm [head_dim], of any dtype, are given, and rotated by freqs
// [.., head_dim / 2, 2], in pairs of channels (2 i, 2 i + 1) if `interleaved`, else (i,
// i + head_dim / 2). Queries go to q [batch, tokens, heads, head_dim], keys and values into the
// caches from position[batch] on. The rows of weight are packed in pairs, see pack_weight. With a
// norm of heads a block has whole ones: tiles is a multiple of head_dim / 16.
int bdk_rms_norm_qkv_cuda(bdk_rows x, const float* moments_or_null, const void* weight, int float8,
                          const void* bias_or_null, bdk_rows norm_weight, float eps, void* q,
                          void* k_cache, void* v_cache, const int32_t* position, const float* freqs,
                          int interleaved, bdk_rows q_norm, bdk_rows k_norm, int64_t batch,
                          int64_t tokens, int64_t heads, int64_t kv_heads, int64_t head_dim,
                          int64_t k_batch, int64_t k_token, int64_t k_head, int64_t v_batch,
                          int64_t v_token, int64_t v_head, int64_t channels, int tiles, int parts,
                          int split, int programmatic, int device, void* stream);

// denoise_step of tokens [tokens / patch, patch, bits], whose predictions are 2 sigmoid(x0) - 1
// with squash, then stream_out = state W^T + b [tokens, features], twice with cfg, and its moments.
// weight and programmatic as above; before the kernel before it has ended it also reads step and
// keys.
int bdk_denoise_step_linear_cuda(const float* x, const void* x0, const float* table,
                                 const void* step, int step_bytes, const float* cfg_or_null,
                                 const float* noise_or_null, const int64_t* keys_or_null,
                                 int squash, const void* weight, const void* bias_or_null,
                                 float* state, void* stream_out, float* moments, int64_t tokens,
                                 int64_t patch, int64_t bits, int64_t features, int dtype,
                                 int programmatic, int device, void* stream);

int bdk_noise_cuda(const int64_t* keys, int64_t rows, int64_t elements, const int64_t* step,
                   float* normals, uint32_t* words_or_null, int device, void* stream);

#ifdef __cplusplus
}
#endif
