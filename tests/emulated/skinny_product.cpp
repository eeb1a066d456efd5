// The device code of skinny_product on the CPU.
#include "card.h"
//
#include "cuda/common/skinny_product_sm90.cuh"

namespace bdk {

template <class T, int kTokens, bool kNorm, bool kRope, bool kFloat8>
const char* launch(SkinnyParams params, uint32_t seed) {
  params.depth = skinny_depth<kTokens, kFloat8>(params.channels / 16, params.split, params.parts);
  const int clusters = (params.features / 16 + params.tiles - 1) / params.tiles;
  const int shared = skinny_shared_bytes(params.rows, params.tiles, params.parts, params.split,
                                         params.depth, params.group);
  return emulated::launch_clusters(
      clusters * params.split, params.split, 32 * params.tiles * params.parts, shared, seed,
      [&] { skinny_product_kernel<T, kTokens, kNorm, kRope, kFloat8>(params); });
}

template <class T, int kTokens, bool kFloat8>
const char* launch_tokens(const SkinnyParams& params, uint32_t seed) {
#if !defined(PLANTED) || defined(SKINNY_PRODUCT)
  if (params.epilogue == kSkinnyRope) return launch<T, kTokens, true, true, kFloat8>(params, seed);
#endif
  if (params.norm == kSkinnyNoNorm) return launch<T, kTokens, false, false, kFloat8>(params, seed);
  return launch<T, kTokens, true, false, kFloat8>(params, seed);
}

template <class T, bool kFloat8>
const char* launch_type(const SkinnyParams& params, uint32_t seed) {
#if !defined(PLANTED) || defined(SKINNY_PRODUCT)  // faults are shown with 9 to 32 rows
  if (params.rows <= 8) return launch_tokens<T, 8, kFloat8>(params, seed);
  if (params.rows > 64) return launch_tokens<T, 128, kFloat8>(params, seed);
  if (params.rows > 32) return launch_tokens<T, 64, kFloat8>(params, seed);
#endif
  return launch_tokens<T, 32, kFloat8>(params, seed);
}

}  // namespace bdk

// Shared memory of a block, in bytes.
extern "C" int skinny_shared(int rows, int channels, int tiles, int parts, int split, int group,
                             int float8) {
  using namespace bdk;
  const int steps = channels / 16;
  const int depth = rows <= 8 && float8 ? skinny_depth<8, true>(steps, split, parts)
                    : rows <= 8         ? skinny_depth<8>(steps, split, parts)
                    : rows <= 32        ? skinny_depth<32>(steps, split, parts)
                    : rows <= 64        ? skinny_depth<64>(steps, split, parts)
                                        : skinny_depth<128>(steps, split, parts);
  return skinny_shared_bytes(rows, tiles, parts, split, depth, group);
}

// tensors: x, moments, weight, bias, scale, shift, norm_weight, norm_bias, residual, gate, y,
// y_moments, and for a rotation q, k_cache, v_cache, position, freqs, q_norm, k_norm.
// sizes: rows, channels, features, norm, epilogue, tiles, parts, split, strides of x, scale, shift,
// residual and gate, and for a rotation those of the caches (batch, token, head of each), tokens,
// heads, kv_heads, head_dim, interleaved, and group; the dtype code of the norms, whether weight is
// float8, and the dtype codes of q_norm and k_norm. late: which tensors the kernel before this one
// writes.
extern "C" const char* skinny_product(void* const* tensors, const int64_t* sizes, float eps,
                                      int is_half, const int64_t* late_bytes, uint32_t seed) {
  using namespace bdk;
  const auto size = [&](int i) { return static_cast<int>(sizes[i]); };
  SkinnyParams params{};
  params.x = tensors[0];
  params.moments = static_cast<const float2*>(tensors[1]);
  params.weight = tensors[2];
  params.bias = tensors[3];
  params.scale = tensors[4];
  params.shift = tensors[5];
  params.norm_weight = tensors[6];
  params.norm_bias = tensors[7];
  params.residual = tensors[8];
  params.gate = tensors[9];
  params.y = tensors[10];
  params.y_moments = static_cast<float2*>(tensors[11]);
  params.norm_weight_dtype = params.norm_bias_dtype = size(25);
  params.rows = size(0);
  params.channels = size(1);
  params.features = size(2);
  params.norm = size(3);
  params.epilogue = size(4);
  params.tiles = size(5);
  params.parts = size(6);
  params.split = size(7);
  params.x_stride = sizes[8];
  params.scale_stride = sizes[9];
  params.shift_stride = sizes[10];
  params.residual_stride = sizes[11];
  params.gate_stride = sizes[12];
  params.float8 = size(26) != 0;
  params.group = params.epilogue == kSkinnyRope ? size(24) : 1;
  params.eps = eps;
  if (params.epilogue == kSkinnyRope) {
    params.rope = {tensors[12],
                   tensors[13],
                   tensors[14],
                   static_cast<const int*>(tensors[15]),
                   static_cast<const float*>(tensors[16]),
                   sizes[13],
                   sizes[14],
                   sizes[15],
                   sizes[16],
                   sizes[17],
                   sizes[18],
                   size(19),
                   size(20),
                   size(21),
                   size(22),
                   size(23) != 0,
                   tensors[17],
                   tensors[18],
                   size(27),
                   size(28)};
  }
  for (int i = 0; i < 19; ++i) {
    if (late_bytes[i] > 0) emulated::late_input(tensors[i], static_cast<size_t>(late_bytes[i]));
  }
// One type shows a fault or a race, and is compiled in a quarter of the time.
#if defined(PLANTED) || defined(SKINNY_PRODUCT)
  (void)is_half;
#else
  if (params.float8) {
    return is_half != 0 ? launch_type<__half, true>(params, seed)
                        : launch_type<__nv_bfloat16, true>(params, seed);
  }
  if (is_half != 0) return launch_type<__half, false>(params, seed);
#endif
  return launch_type<__nv_bfloat16, false>(params, seed);
}
