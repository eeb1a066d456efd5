// Every C function of the CPU library, once; those of the CUDA library are in
// bitdance_kernels_cuda.h.
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

const char* bdk_cpu_status_string(int status);

// Instruction sets: 0 scalar, 1 AVX2, 2 AVX-512. `isa` is what the kernels use: the best one that
// the processor has and that bdk_cpu_set_isa_limit allows (by default, any).
int bdk_cpu_isa_detected(void);
int bdk_cpu_isa(void);
int bdk_cpu_set_isa_limit(int limit);

// fingerprints[index]: a hash of memory, other bits for any change of a single word.
int bdk_fingerprint_cpu(const void* memory, int64_t bytes, uint64_t* fingerprints, int64_t index);

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
// 1, high, low], zeroed, gets the probabilities of the codes summed over each slice of the tokens;
// entropy: [slices], the summed entropies.
int bdk_lfq_entropy_cpu(const float* x, int64_t x_stride, int64_t tokens, int64_t groups,
                        int64_t bits, float scale, int per_group, float* sums, double* entropy,
                        int64_t slices, int threads);

// grad_p: [groups or 1, high, low], the gradient of the codes' probabilities, and the same
// transposed; sample_share: the gradient of the entropy of one bit; grad_x: [tokens, groups, bits].
int bdk_lfq_entropy_backward_cpu(const float* x, int64_t x_stride, int64_t tokens, int64_t groups,
                                 int64_t bits, float scale, int per_group, const float* grad_p,
                                 const float* grad_p_transposed, float sample_share, float* grad_x,
                                 int threads);

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
typedef struct {
  void* data;
  int64_t stride;
  int dtype;
  int64_t repeat;  // rows that each of them counts as, 1 but for inputs of adaln and gated_residual
} bdk_rows;

// Tokens of heads [batch, tokens, heads, channels] with adjacent channels; strides in elements.
typedef struct {
  void* data;
  int64_t batch, token, head;
  int dtype;
} bdk_heads;

// Row ops of the head: `rows` rows of `channels` values, each tensor with its own dtype; adaln
// takes rows of halves of up to 8192 channels. Computed in float32.
// adaln_norm: y = (weight LN(x) + bias) (1 + scale) + shift.
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
// coefficients [images, 5, channels]; null for images * n * groups <= 512, images * channels <=
// 1024.
int bdk_group_norm_silu_cpu(const void* x, void* y, int64_t images, int64_t channels,
                            int64_t positions, int64_t groups, int channels_last, int64_t chunk,
                            const float* weight_or_null, const float* bias_or_null,
                            const float* scale_or_null, const float* shift_or_null, int silu,
                            double eps, double* spreads_or_null, float* coefficients_or_null,
                            int dtype, int threads);

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

// The same for a weight in panels, [features / 16, channels, 16]; features is a multiple of 16. The
// other function brings `features` rows of `channels` into that order.
int bdk_linear_panels_cpu(bdk_rows x, const float* weight, const float* bias_or_null, bdk_rows y,
                          int64_t rows, int64_t channels, int64_t features, int threads);
int bdk_pack_panels_cpu(bdk_rows weight, float* panels, int64_t features, int64_t channels,
                        int threads);

// The same for an int8 weight in panels, [features / 16, channels + 4, 16]: the last 64 bytes of a
// panel are its features' scales, float32, by which results are multiplied before the bias is
// added.
int bdk_linear_int8_cpu(bdk_rows x, const int8_t* weight, const float* bias_or_null, bdk_rows y,
                        int64_t rows, int64_t channels, int64_t features, int threads);

// For float32 panels: y = silu(gate) value of the halves of x weight^T + bias, of `features` each;
// y = residual + gate (x weight^T + bias), gate null for 1, residual and y [rows, features].
int bdk_linear_swiglu_cpu(bdk_rows x, const float* weight, const float* bias_or_null, bdk_rows y,
                          int64_t rows, int64_t channels, int64_t features, int threads);
int bdk_linear_gated_residual_cpu(bdk_rows x, const float* weight, const float* bias_or_null,
                                  const float* residual, bdk_rows gate, float* y, int64_t rows,
                                  int64_t channels, int64_t features, int threads);

// y = x / sqrt(mean(x^2) + eps) * weight of `rows` rows of `channels` values.
int bdk_rms_norm_cpu(bdk_rows x, const float* weight_or_null, bdk_rows y, int64_t rows,
                     int64_t channels, double eps, int threads);

// h: rows of 2 * hidden values, gate half first; y: [rows, hidden] = silu(gate) value.
int bdk_swiglu_cpu(bdk_rows h, bdk_rows y, int64_t rows, int64_t hidden, int threads);

int bdk_swiglu_backward_cpu(bdk_rows grad, bdk_rows h, bdk_rows grad_h, int64_t rows,
                            int64_t hidden, int threads);

// qkv: [rows, patch, 3 * heads * head_dim], a row for every token, patch <= 64, head_dim <= 128;
// out: [rows, patch, heads * head_dim], of the dtype of qkv.
int bdk_patch_attention_cpu(bdk_rows qkv, bdk_rows out, int64_t rows, int64_t patch, int64_t heads,
                            int64_t head_dim, int threads);

int bdk_patch_attention_backward_cpu(bdk_rows grad, bdk_rows qkv, bdk_rows grad_qkv, int64_t rows,
                                     int64_t patch, int64_t heads, int64_t head_dim, int threads);

// q: [batch, tokens, heads, head_dim], k_cache, v_cache: [batch, cache_tokens, kv_heads, head_dim],
// both strided, with adjacent channels, at most 128 of them; the first lengths[b] tokens of the
// cache are read; out: [batch, tokens, heads, head_dim].
int bdk_block_decode_attention_cpu(const void* q, const void* k_cache, const void* v_cache,
                                   const int32_t* lengths, void* out, int64_t batch, int64_t tokens,
                                   int64_t heads, int64_t kv_heads, int64_t head_dim,
                                   int64_t cache_tokens, int64_t q_batch, int64_t q_token,
                                   int64_t q_head, int64_t k_batch, int64_t k_token, int64_t k_head,
                                   int64_t v_batch, int64_t v_token, int64_t v_head, float scale,
                                   int dtype, int threads);

// q, out: [batch, tokens, heads, head_dim]; k, v: [batch, keys, kv_heads, head_dim], all of one
// dtype; head_dim <= 128, tokens, keys <= 4096; start, end: [tokens] every `range_batch`, the keys
// that a query sees; lse: [batch, heads, tokens]. workspace: `workspace_size` floats a thread, of
// (3 keys + 2 tokens) head_dim + 16 keys, keys and head_dim rounded up to multiples of 16.
int bdk_block_causal_attention_cpu(bdk_heads q, bdk_heads k, bdk_heads v, const int32_t* start,
                                   const int32_t* end, int64_t range_batch, bdk_heads out,
                                   float* lse, int64_t batch, int64_t tokens, int64_t heads,
                                   int64_t kv_heads, int64_t head_dim, int64_t keys, float scale,
                                   float* workspace, int64_t workspace_size, int threads);

// grad, dq: as q; dk, dv: as k; workspace: (6 keys + 3 tokens) head_dim + 128 keys floats.
int bdk_block_causal_attention_backward_cpu(bdk_heads grad, bdk_heads q, bdk_heads k, bdk_heads v,
                                            const float* lse, const int32_t* start,
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

// y = the convolution of x [images, height, width, channels] with filters of 3 x 3 pixels and a
// border of zeros, + bias + addend; y, addend: [images, height, width, features]. weight: panels of
// [features, 3, 3, channels]. With upscale = s > 1 features (s dy + dx) C' + c go to channel c of
// pixel (s y + dy, s x + dx) of y [images, s height, s width, C']. features is a multiple of 16
// s^2.
int bdk_conv3x3_cpu(const float* x, const float* weight, const float* bias_or_null,
                    const float* addend_or_null, float* y, float* scratch, int64_t images,
                    int64_t height, int64_t width, int64_t channels, int64_t features,
                    int64_t upscale, int64_t at_once, int64_t scratch_size, int threads);

#ifdef __cplusplus
}
#endif
