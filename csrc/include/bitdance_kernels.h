// Every exported C function of the native kernels, once.
//
// Conventions. All functions return a status: 0 is success, a positive value is a cudaError_t, a
// negative one a bdk_status below; bdk_*_status_string puts it into words. They allocate nothing,
// throw nothing, print nothing. Sizes and strides are in elements, never bytes. `dtype` is a code
// of common/dtype.h. CPU functions use at most `threads` threads and return when the result is
// written. CUDA functions launch on `stream` of `device`, never synchronise, and can be captured in
// a graph.
//
// Bits. Bit = 1 exactly where the value is > 0 (+0, -0 and NaN give 0). Channel c is bit c % 8 of
// byte c / 8. Unpacked values are +1 and -1.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  BDK_OK = 0,
  BDK_BAD_DTYPE = -1,
  BDK_BAD_SIZE = -2,
  BDK_BAD_INDEX = -3,
} bdk_status;

// ---------------------------------------------------------------- the CPU library

const char* bdk_cpu_status_string(int status);

// Instruction sets: 0 scalar, 1 AVX2, 2 AVX-512. `isa` is what the kernels use: the best one that
// the processor has and that bdk_cpu_set_isa_limit allows (by default, any).
int bdk_cpu_isa_detected(void);
int bdk_cpu_isa(void);
int bdk_cpu_set_isa_limit(int limit);

// Limits of this machine, to hold a kernel against. Memory: as many bytes read and written as asked
// for, both together as a copy, the rest read in four streams or cleared; `words`: the XOR of the
// 64-bit words that were read alone. Sizes in bytes, multiples of 256; addresses of 64.
int bdk_limit_memory_cpu(const uint8_t* source, int64_t read, uint8_t* target, int64_t written,
                         int streaming, uint64_t* words);

// Multiply-adds in float32 on independent registers, each sum = factor sum + term from 0. `sum`:
// all of them; `operations`: of all rounds, a multiply-add is two.
int bdk_limit_multiply_add_cpu(int64_t rounds, float factor, float term, float* sum,
                               int64_t* operations);

// x: `rows` rows of `channels` values, one row every `row_stride`; packed: [rows, channels / 8].
int bdk_pack_signs_cpu(const void* x, uint8_t* packed, int64_t rows, int64_t channels,
                       int64_t row_stride, int dtype, int threads);

// packed: `rows` rows of `channels / 8` bytes, one row every `row_stride`; y: [rows, channels].
int bdk_unpack_signs_cpu(const uint8_t* packed, void* y, int64_t rows, int64_t channels,
                         int64_t row_stride, int dtype, int threads);

// x: `rows` rows of `channels` values, one row every `row_stride`; y: [rows, channels], +1 or -1;
// packed: [rows, channels / 8].
int bdk_lfq_quantize_cpu(const void* x, void* y, uint8_t* packed, int64_t rows, int64_t channels,
                         int64_t row_stride, int dtype, int threads);

// The same for float32, and sums: [slices], of (x - y)^2, one slice of the rows a thread.
int bdk_lfq_quantize_commitment_cpu(const float* x, float* y, uint8_t* packed, double* sums,
                                    int64_t rows, int64_t channels, int64_t row_stride,
                                    int64_t slices);

// grad_x = grad + factor (x - y); grad, x: one row every `*_stride`; grad_x: [rows, channels].
int bdk_lfq_quantize_commitment_backward_cpu(const float* grad, int64_t grad_stride, const float* x,
                                             int64_t x_stride, float factor, float* grad_x,
                                             int64_t rows, int64_t channels, int threads);

// x: [tokens, groups, bits], one token every `x_stride`; the log-odds of a bit are scale x. high
// and low: half codes, 2^(bits / 2) and 2^((bits + 1) / 2), at least 16. sums: [slices, groups or
// 1, high, low], zeroed, gets the summed probabilities of the codes, one slice a thread; entropy:
// [slices], the summed entropies.
int bdk_lfq_entropy_cpu(const float* x, int64_t x_stride, int64_t tokens, int64_t groups,
                        int64_t bits, float scale, int per_group, float* sums, double* entropy,
                        int64_t slices);

// grad_p: [groups or 1, high, low], the gradient of the codes' probabilities, and the same
// transposed; sample_share: the gradient of the entropy of one bit; grad_x: [tokens, groups, bits].
int bdk_lfq_entropy_backward_cpu(const float* x, int64_t x_stride, int64_t tokens, int64_t groups,
                                 int64_t bits, float scale, int per_group, const float* grad_p,
                                 const float* grad_p_transposed, float sample_share, float* grad_x,
                                 int64_t slices);

// packed: [rows, row_bytes]; counts: [8 * row_bytes].
int bdk_bit_counts_cpu(const uint8_t* packed, int64_t* counts, int64_t rows, int64_t row_bytes,
                       int threads);

// a: [queries, bytes]; b_blocks: [codes / 64 rounded up, bytes, 64], 64 codes byte by byte,
// arbitrary past the last code; distance: [queries, codes].
int bdk_hamming_distance_cpu(const uint8_t* a, const uint8_t* b_blocks, int32_t* distance,
                             int64_t queries, int64_t codes, int64_t bytes, int threads);

// index, distance: [queries, k], ascending, equal distances by index; k is at most 128.
int bdk_nearest_codes_cpu(const uint8_t* a, const uint8_t* b_blocks, int64_t* index,
                          int32_t* distance, int64_t queries, int64_t codes, int64_t bytes,
                          int64_t k, int threads);

// blocks: [codes / 64 rounded up, bytes, 64] from codes [count, bytes], one every `stride` bytes.
int bdk_code_blocks_cpu(const uint8_t* codes, int64_t stride, uint8_t* blocks, int64_t count,
                        int64_t bytes, int threads);

// Number of queries up to which the functions for codes as they lie take less time.
int bdk_few_queries_cpu(int64_t bytes);

// The same results from codes as they lie, for few queries.
int bdk_hamming_distance_few_cpu(const uint8_t* a, const uint8_t* codes, int64_t stride,
                                 int32_t* distance, int64_t queries, int64_t count, int64_t bytes,
                                 int threads);
int bdk_nearest_codes_few_cpu(const uint8_t* a, const uint8_t* codes, int64_t stride,
                              int64_t* index, int32_t* distance, int64_t queries, int64_t count,
                              int64_t bytes, int64_t k, int threads);

// key: (seed, offset); threshold: 2^15 times the rate.
// first: number of the first byte in the array that these bytes are a part of.
int bdk_flip_bits_cpu(const uint8_t* packed, uint8_t* flipped, int64_t bytes, int64_t first,
                      const int64_t* key, int64_t threshold, int threads);

int bdk_flip_signs_cpu(const void* x, void* y, int64_t values, const int64_t* key,
                       int64_t threshold, int dtype, int threads);

// Rows of values, one every `stride` elements, in the format of a dtype code; absent without data.
// Each counts as `repeat` rows; more than 1 is for inputs of adaln_norm and gated_residual on the CPU.
typedef struct {
  void* data;
  int64_t stride;
  int dtype;
  int64_t repeat;
} bdk_rows;

// Tokens of heads [batch, tokens, heads, channels] with adjacent channels; strides in elements.
typedef struct {
  void* data;
  int64_t batch, token, head;
  int dtype;
} bdk_heads;

// Row ops of the head: `rows` rows of `channels` values, each tensor with its own dtype; adaln
// takes rows of halves of up to 8192 channels. Computed in float32.
//
// y = (weight LN(x) + bias) (1 + scale) + shift.
int bdk_adaln_norm_cpu(bdk_rows x, bdk_rows scale, bdk_rows shift, const float* weight_or_null,
                       const float* bias_or_null, bdk_rows y, int64_t rows, int64_t channels,
                       float eps, int threads);

// moments: workspace [rows, 2]. grad_weight, grad_bias: [channels], written when either is given.
int bdk_adaln_norm_backward_cpu(bdk_rows grad, bdk_rows x, bdk_rows scale,
                                const float* weight_or_null, const float* bias_or_null,
                                bdk_rows grad_x, bdk_rows grad_scale, bdk_rows grad_shift,
                                float* grad_weight, float* grad_bias, float* moments, int64_t rows,
                                int64_t channels, float eps, int threads);

// y = x + gate h.
int bdk_gated_residual_cpu(bdk_rows x, bdk_rows h, bdk_rows gate, bdk_rows y, int64_t rows,
                           int64_t channels, int threads);

// y = x + gate h as it is stored, z = (weight LN(y) + bias) (1 + scale) + shift.
int bdk_gated_residual_adaln_cpu(bdk_rows x, bdk_rows h, bdk_rows gate, bdk_rows scale,
                                 bdk_rows shift, const float* weight_or_null,
                                 const float* bias_or_null, bdk_rows y, bdk_rows z, int64_t rows,
                                 int64_t channels, float eps, int threads);

// The gradient of y is grad + more; more: [rows, channels] or null.
int bdk_gated_residual_backward_cpu(bdk_rows grad, const float* more_or_null, bdk_rows h,
                                    bdk_rows gate, bdk_rows grad_x, bdk_rows grad_h,
                                    bdk_rows grad_gate, int64_t rows, int64_t channels,
                                    int threads);

// x, y: [images, channels, positions] or, channels_last, [images, positions, channels], of `dtype`;
// weight, bias: [channels]; scale, shift: [images, channels]; all four may be null. `chunk` is the
// number of positions of a channels-last map taken at a time, of halves at most 8192 values; n =
// ceil(positions / chunk), and 1 for a contiguous map. Workspace: spreads [images, n, groups, 3],
// coefficients [images, 5, channels].
int bdk_group_norm_silu_cpu(const void* x, void* y, int64_t images, int64_t channels,
                            int64_t positions, int64_t groups, int channels_last, int64_t chunk,
                            const float* weight_or_null, const float* bias_or_null,
                            const float* scale_or_null, const float* shift_or_null, int silu,
                            double eps, double* spreads, float* coefficients, int dtype,
                            int threads);

// The gradients of weight and bias, like those of scale and shift, are [images, channels]; the
// caller sums them over the images. More workspace: sums [images, 2, channels] and, for a
// channels-last map, chunk_sums [images, n, 2, channels].
int bdk_group_norm_silu_backward_cpu(const void* grad, const void* x, void* grad_x, int64_t images,
                                     int64_t channels, int64_t positions, int64_t groups,
                                     int channels_last, int64_t chunk, const float* weight_or_null,
                                     const float* bias_or_null, const float* scale_or_null,
                                     const float* shift_or_null, float* grad_weight_or_null,
                                     float* grad_bias_or_null, float* grad_scale_or_null,
                                     float* grad_shift_or_null, int silu, double eps,
                                     double* spreads, double* sums, float* coefficients,
                                     float* chunk_sums, int grad_dtype, int dtype, int threads);

// y = x weight^T + bias in float32; x: [rows, channels], weight: [features, channels],
// y: [rows, features].
int bdk_linear_cpu(bdk_rows x, bdk_rows weight, const float* bias_or_null, bdk_rows y, int64_t rows,
                   int64_t channels, int64_t features, int threads);

// The same for a weight in panels, [features / 16, channels, 16]; features is a multiple of 16.
int bdk_linear_panels_cpu(bdk_rows x, const float* weight, const float* bias_or_null, bdk_rows y,
                          int64_t rows, int64_t channels, int64_t features, int threads);

// Brings a weight, `features` rows of `channels`, into panels.
int bdk_pack_panels_cpu(bdk_rows weight, float* panels, int64_t features, int64_t channels,
                        int threads);

// h: rows of 2 * hidden values, gate half first; y: [rows, hidden] = silu(gate) value.
int bdk_swiglu_cpu(bdk_rows h, bdk_rows y, int64_t rows, int64_t hidden, int threads);

int bdk_swiglu_backward_cpu(bdk_rows grad, bdk_rows h, bdk_rows grad_h, int64_t rows,
                            int64_t hidden, int threads);

// In float32; qkv: [rows, patch, 3 * heads * head_dim], a row for every token, patch <= 64,
// head_dim <= 128; out: [rows, patch, heads * head_dim].
int bdk_patch_attention_cpu(bdk_rows qkv, float* out, int64_t rows, int64_t patch, int64_t heads,
                            int64_t head_dim, int threads);

int bdk_patch_attention_backward_cpu(bdk_rows grad, bdk_rows qkv, float* grad_qkv, int64_t rows,
                                     int64_t patch, int64_t heads, int64_t head_dim, int threads);

// q: [batch, tokens, heads, head_dim], k_cache, v_cache: [batch, cache_tokens, kv_heads, head_dim],
// both strided, with adjacent channels, at most 128 of them; the first lengths[b] tokens of the
// cache are read; out: [batch, tokens, heads, head_dim].
int bdk_block_decode_attention_cpu(const float* q, const float* k_cache, const float* v_cache,
                                   const int32_t* lengths, float* out, int64_t batch,
                                   int64_t tokens, int64_t heads, int64_t kv_heads,
                                   int64_t head_dim, int64_t cache_tokens, int64_t q_batch,
                                   int64_t q_token, int64_t q_head, int64_t k_batch,
                                   int64_t k_token, int64_t k_head, int64_t v_batch,
                                   int64_t v_token, int64_t v_head, float scale, int threads);

// q, out: [batch, tokens, heads, head_dim]; k, v: [batch, keys, kv_heads, head_dim], all of one
// dtype; head_dim <= 128, tokens, keys <= 4096; start, end: [tokens] every `range_batch`, the keys
// that a query sees; lse: [batch, heads, tokens]. workspace: `workspace_size` floats a thread, at
// least (3 keys + 2 tokens) head_dim + 16 keys, with keys and head_dim rounded up to multiples
// of 16.
int bdk_block_causal_attention_cpu(bdk_heads q, bdk_heads k, bdk_heads v, const int32_t* start,
                                   const int32_t* end, int64_t range_batch, bdk_heads out,
                                   float* lse, int64_t batch, int64_t tokens, int64_t heads,
                                   int64_t kv_heads, int64_t head_dim, int64_t keys, float scale,
                                   float* workspace, int64_t workspace_size, int threads);

// grad, dq: as out; dk, dv: as k. The workspace has at least (6 keys + 4 tokens) head_dim + 256
// keys floats a thread.
int bdk_block_causal_attention_backward_cpu(bdk_heads grad, bdk_heads q, bdk_heads k, bdk_heads v,
                                            bdk_heads out, const float* lse, const int32_t* start,
                                            const int32_t* end, int64_t range_batch, bdk_heads dq,
                                            bdk_heads dk, bdk_heads dv, int64_t batch,
                                            int64_t tokens, int64_t heads, int64_t kv_heads,
                                            int64_t head_dim, int64_t keys, float scale,
                                            float* workspace, int64_t workspace_size, int threads);

// y = x, [batch, tokens, heads, channels] of `dtype`, rotated by freqs [tokens, channels / 2, 2],
// or by the negative angles (`back`); x has strides, y none. At most 1024 channels.
int bdk_rope_cpu(const void* x, const float* freqs, void* y, int64_t batch, int64_t tokens,
                 int64_t heads, int64_t channels, int64_t x_batch, int64_t x_token, int64_t x_head,
                 int interleaved, int back, int dtype, int threads);

// qkv: [batch, tokens, heads + 2 kv_heads, head_dim], its heads adjacent; q: [batch, tokens, heads,
// head_dim]; k_cache, v_cache: [batch, cache_tokens, kv_heads, head_dim], written from row
// position[b] on; freqs: [positions, head_dim / 2, 2]; norms: [head_dim]. If rows lie outside the
// cache or freqs, the status is BDK_BAD_INDEX and nothing is written.
int bdk_rope_append_cpu(const float* qkv, float* q, float* k_cache, float* v_cache,
                        const int32_t* position, const float* freqs, const float* q_norm_or_null,
                        const float* k_norm_or_null, int64_t batch, int64_t tokens, int64_t heads,
                        int64_t kv_heads, int64_t head_dim, int64_t cache_tokens, int64_t positions,
                        int64_t qkv_batch, int64_t qkv_token, int64_t k_batch, int64_t k_token,
                        int64_t k_head, int64_t v_batch, int64_t v_token, int64_t v_head, float eps,
                        int interleaved, int threads);

// keys: [rows, 3] = (seed, 2 * AR step + stream, sample id); step: one value, counter word 1;
// normals: [rows, elements]; words_or_null: [rows, elements] or null, the words they are made from.
int bdk_noise_cpu(const int64_t* keys, int64_t rows, int64_t elements, const int64_t* step,
                  float* normals, uint32_t* words_or_null, int threads);

// One step of the sampler, x' = a x + b x0_cfg + s eps with (a, b, s) = table[step]. x, y, noise:
// [rows, elements]; x0: the same, or [2, rows, elements] with `cfg`, conditional half first; step:
// one integer of `step_bytes` 4 or 8; either `noise` or `keys` [rows, 3] is given. A step outside
// the table is BDK_BAD_INDEX.
int bdk_denoise_step_cpu(const float* x, const void* x0, const float* table, int64_t table_rows,
                         const void* step, int step_bytes, const float* cfg_or_null,
                         const float* noise_or_null, const int64_t* keys_or_null, float* y,
                         int64_t rows, int64_t elements, int dtype, int threads);

// x0: [2, values], conditional half first; signs: [values], of u + cfg (c - u); packed: [values /
// 8]. Without guidance this is bdk_lfq_quantize_cpu.
int bdk_finalize_bits_cpu(const void* x0, const float* cfg, void* signs, uint8_t* packed,
                          int64_t values, int dtype, int threads);

// ---------------------------------------------------------------- the CUDA library

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
// (x W^T + b); y_moments: of y. A block has `tiles` tiles of 16 features and `parts` warps for each, which divide the channels, as
// do the `split` (1, 2, 4 or 8) blocks of a cluster.
// programmatic: the kernel starts before the one before it on the stream has ended. Until that one
// has, it reads weight, norm_weight, norm_bias, scale and shift: no kernel since the last one that
// was launched without `programmatic` may write them.
int bdk_skinny_product_cuda(bdk_rows x, const float* moments_or_null, const void* weight,
                            int float8, const void* bias_or_null, int norm, bdk_rows scale, bdk_rows shift,
                            bdk_rows norm_weight, bdk_rows norm_bias, float eps, int epilogue,
                            bdk_rows residual, bdk_rows gate, void* y, float* y_moments_or_null,
                            int64_t rows, int64_t channels, int64_t features, int tiles, int parts,
                            int split, int programmatic, int device, void* stream);

// As above with RMSNorm: queries, keys and values of batch * tokens rows. Heads of queries and keys
// are normalized where q_norm and k_norm [head_dim], of any dtype, are given, and rotated by freqs
// [.., head_dim / 2, 2], in pairs of channels (2 i, 2 i + 1) if `interleaved`, else (i,
// i + head_dim / 2). Queries go to q [batch, tokens, heads, head_dim], keys and values into the
// caches from position[batch] on. The rows of weight are packed in pairs, see pack_weight. With a
// norm of heads a block has whole ones: tiles is a multiple of head_dim / 16.
int bdk_rms_norm_qkv_cuda(bdk_rows x, const float* moments_or_null, const void* weight,
                          int float8, const void* bias_or_null, bdk_rows norm_weight, float eps, void* q,
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
