// skinny_product: check, choose the kernel, launch it.
#include "bitdance_kernels_cuda.h"
#include "cuda/common/skinny_product_launch_sm90.cuh"

namespace bdk {

extern template cudaError_t launch_skinny_product<true>(const SkinnyParams&, int,
                                                        const LaunchSm90&);

namespace {

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// Whether the kernel can read these rows, which may be absent.
bool readable(bdk_rows rows, int dtype) {
  if (rows.data == nullptr) return true;
  return rows.dtype == dtype && rows.stride % 8 == 0 && aligned(rows.data);
}

int run(const SkinnyParams& params, int dtype, const LaunchSm90& how) {
  const bool powers =
      params.split == 1 || params.split == 2 || params.split == 4 || params.split == 8;
  if (params.rows < 0 || params.rows > kSkinnyMaxRows || params.channels < 16 ||
      params.channels % 16 != 0 || params.features < 16 || params.features % 16 != 0 || !powers ||
      params.tiles < 1 || params.parts < 1 || params.tiles > 16 || params.parts > 16 ||
      params.channels / 16 < params.split || params.norm < 0 || params.norm > kSkinnyRmsNorm) {
    return BDK_BAD_SIZE;
  }
  if (!aligned(params.weight)) return BDK_BAD_SIZE;
  if (params.rows == 0) return BDK_OK;
  const DeviceGuard guard(how.device);
  if (guard.status() != cudaSuccess) return guard.status();
  return params.float8 ? launch_skinny_product<true>(params, dtype, how)
                       : launch_skinny_product<false>(params, dtype, how);
}

}  // namespace
}  // namespace bdk

int bdk_skinny_product_cuda(bdk_rows x, const float* moments_or_null, const void* weight,
                            int float8, const void* bias_or_null, int norm, bdk_rows scale,
                            bdk_rows shift, bdk_rows norm_weight, bdk_rows norm_bias, float eps,
                            int epilogue, bdk_rows residual, bdk_rows gate, void* y,
                            float* y_moments_or_null, int64_t rows, int64_t channels,
                            int64_t features, int tiles, int parts, int split, int programmatic,
                            int device, void* stream) {
  using namespace bdk;
  const int dtype = x.dtype;
  if (dtype != kFloat16 && dtype != kBFloat16) return BDK_BAD_DTYPE;
  for (const bdk_rows& given : {x, scale, shift}) {
    if (!readable(given, dtype)) return BDK_BAD_SIZE;
  }
  for (const bdk_rows& given : {residual, gate}) {
    if (given.data != nullptr && given.dtype != dtype) return BDK_BAD_DTYPE;
  }
  if (epilogue < 0 || epilogue > kSkinnyGated || rows > kSkinnyMaxRows || channels > INT32_MAX ||
      features > INT32_MAX) {
    return BDK_BAD_SIZE;
  }
  SkinnyParams params{};
  params.weight = weight;
  params.float8 = float8 != 0;
  params.bias = bias_or_null;
  params.x = x.data;
  params.moments = reinterpret_cast<const float2*>(moments_or_null);
  params.scale = scale.data;
  params.shift = shift.data;
  params.norm_weight = norm_weight.data;
  params.norm_bias = norm_bias.data;
  params.norm_weight_dtype = norm_weight.dtype;
  params.norm_bias_dtype = norm_bias.dtype;
  params.residual = residual.data;
  params.gate = gate.data;
  params.y = y;
  params.y_moments = reinterpret_cast<float2*>(y_moments_or_null);
  params.x_stride = x.stride;
  params.scale_stride = scale.stride;
  params.shift_stride = shift.stride;
  params.residual_stride = residual.stride;
  params.gate_stride = gate.stride;
  params.rows = static_cast<int>(rows);
  params.channels = static_cast<int>(channels);
  params.features = static_cast<int>(features);
  params.norm = norm;
  params.epilogue = epilogue;
  params.group = 1;
  params.tiles = tiles;
  params.parts = parts;
  params.split = split;
  params.eps = eps;
  return run(params, dtype, {device, stream, programmatic != 0});
}

int bdk_rms_norm_qkv_cuda(bdk_rows x, const float* moments_or_null, const void* weight, int float8,
                          const void* bias_or_null, bdk_rows norm_weight, float eps, void* q,
                          void* k_cache, void* v_cache, const int32_t* position, const float* freqs,
                          int interleaved, bdk_rows q_norm, bdk_rows k_norm, int64_t batch,
                          int64_t tokens, int64_t heads, int64_t kv_heads, int64_t head_dim,
                          int64_t k_batch, int64_t k_token, int64_t k_head, int64_t v_batch,
                          int64_t v_token, int64_t v_head, int64_t channels, int tiles, int parts,
                          int split, int programmatic, int device, void* stream) {
  using namespace bdk;
  const int dtype = x.dtype;
  if (dtype != kFloat16 && dtype != kBFloat16) return BDK_BAD_DTYPE;
  if (batch < 0 || tokens < 0 || heads < 1 || kv_heads < 1 || head_dim < 2 || head_dim % 2 != 0 ||
      heads > INT32_MAX / 4 / head_dim || kv_heads > INT32_MAX / 4 / head_dim ||
      channels > INT32_MAX || (tokens > 0 && batch > kSkinnyMaxRows / tokens) ||
      !readable(x, dtype)) {
    return BDK_BAD_SIZE;
  }
  // A norm joins the tiles of a head, which one block finishes.
  const bool normed = q_norm.data != nullptr || k_norm.data != nullptr;
  const bool whole = head_dim % 16 == 0;
  if ((normed || !interleaved) && !whole) return BDK_BAD_SIZE;
  const int group = normed ? static_cast<int>(head_dim / 16) : 1;
  if (tiles < 1 || tiles % group != 0) return BDK_BAD_SIZE;
  SkinnyParams params{};
  params.weight = weight;
  params.float8 = float8 != 0;
  params.bias = bias_or_null;
  params.x = x.data;
  params.moments = reinterpret_cast<const float2*>(moments_or_null);
  params.norm_weight = norm_weight.data;
  params.norm_weight_dtype = norm_weight.dtype;
  params.rope = {q,
                 k_cache,
                 v_cache,
                 position,
                 freqs,
                 k_batch,
                 k_token,
                 k_head,
                 v_batch,
                 v_token,
                 v_head,
                 static_cast<int>(tokens),
                 static_cast<int>(heads),
                 static_cast<int>(kv_heads),
                 static_cast<int>(head_dim),
                 interleaved != 0,
                 q_norm.data,
                 k_norm.data,
                 q_norm.dtype,
                 k_norm.dtype};
  params.x_stride = x.stride;
  params.rows = static_cast<int>(batch * tokens);
  params.channels = static_cast<int>(channels);
  params.features = static_cast<int>((heads + 2 * kv_heads) * head_dim);
  params.norm = kSkinnyRmsNorm;
  params.epilogue = kSkinnyRope;
  params.group = group;
  params.tiles = tiles;
  params.parts = parts;
  params.split = split;
  params.eps = eps;
  return run(params, dtype, {device, stream, programmatic != 0});
}
