// The choice of skinny_product's kernel, and its launch.
#pragma once

#include "cuda/common/launch_sm90.h"
#include "cuda/common/skinny_product_sm90.cuh"

namespace bdk {

template <class T, int kTokens, bool kNorm, bool kRope, bool kFloat8>
cudaError_t launch_skinny_kernel(SkinnyParams params, const LaunchSm90& how) {
  const int threads = 32 * params.tiles * params.parts;
  if (threads > kSkinnyMaxThreads<kTokens, kRope>) return cudaErrorInvalidConfiguration;
  params.depth = skinny_depth<kTokens, kFloat8>(params.channels / 16, params.split, params.parts);
  const int clusters = (params.features / 16 + params.tiles - 1) / params.tiles;
  const int shared = skinny_shared_bytes(params.rows, params.tiles, params.parts, params.split,
                                         params.depth, params.group);
  return launch_sm90(skinny_product_kernel<T, kTokens, kNorm, kRope, kFloat8>, params,
                     clusters * params.split, threads, shared, params.split, how);
}

template <class T, int kTokens, bool kFloat8>
cudaError_t launch_skinny_tokens(const SkinnyParams& params, const LaunchSm90& how) {
  if (params.epilogue == kSkinnyRope)
    return launch_skinny_kernel<T, kTokens, true, true, kFloat8>(params, how);
  if (params.norm == kSkinnyNoNorm)
    return launch_skinny_kernel<T, kTokens, false, false, kFloat8>(params, how);
  return launch_skinny_kernel<T, kTokens, true, false, kFloat8>(params, how);
}

template <class T, bool kFloat8>
cudaError_t launch_skinny_type(const SkinnyParams& params, const LaunchSm90& how) {
  if (params.rows <= 8) return launch_skinny_tokens<T, 8, kFloat8>(params, how);
  if (params.rows <= 32) return launch_skinny_tokens<T, 32, kFloat8>(params, how);
  if (params.rows <= 64) return launch_skinny_tokens<T, 64, kFloat8>(params, how);
  return launch_skinny_tokens<T, 128, kFloat8>(params, how);
}

// Float8 weights have a source file of their own, which is compiled beside the other.
template <bool kFloat8>
cudaError_t launch_skinny_product(const SkinnyParams& params, int dtype, const LaunchSm90& how) {
  return dtype == kFloat16 ? launch_skinny_type<__half, kFloat8>(params, how)
                           : launch_skinny_type<__nv_bfloat16, kFloat8>(params, how);
}

}  // namespace bdk
