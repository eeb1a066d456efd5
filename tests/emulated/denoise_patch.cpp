// The device code of denoise_patch on the CPU, for narrow heads. Since each planted fault is a
// program of its own, those are compiled for few rows in bfloat16 alone.
#include "card.h"
//
#include "cuda/denoise_patch/denoise_patch_sm90.cuh"

namespace bdk {

#ifdef PLANTED
constexpr bool kAll = false;
#else
constexpr bool kAll = true;
#endif

template <class T, int kC, int kH, int kRows, bool kAttention>
const char* denoise(const DenoisePatchParams& params, int blocks, uint32_t seed) {
  return emulated::launch_clusters(
      blocks, blocks, kPatchThreads, DenoisePatch<T, kC, kH, kRows, kAttention>::kSharedBytes, seed,
      [&] { denoise_patch_kernel<T, kC, kH, kRows, kAttention>(params); });
}

template <class T, int kC, int kH, bool kAttention>
const char* denoise_rows(const DenoisePatchParams& params, int blocks, uint32_t seed) {
  if (params.rows <= 8) return denoise<T, kC, kH, 8, kAttention>(params, blocks, seed);
  if constexpr (kAll) {
    if (params.rows > 16) return denoise<T, kC, kH, 32, kAttention>(params, blocks, seed);
  }
  return denoise<T, kC, kH, 16, kAttention>(params, blocks, seed);
}

template <class T>
const char* denoise(const DenoisePatchParams& params, [[maybe_unused]] int channels, int blocks,
                    uint32_t seed) {
  const bool attention = params.qkv_weight != nullptr;
  if constexpr (kAll) {
    if (channels == 256) {  // as in a model
      return attention ? denoise<T, 256, 384, 8, true>(params, blocks, seed)
                       : denoise<T, 256, 384, 8, false>(params, blocks, seed);
    }
  }
  return attention ? denoise_rows<T, 128, 256, true>(params, blocks, seed)
                   : denoise_rows<T, 128, 256, false>(params, blocks, seed);
}

}  // namespace bdk

// tensors: as in DenoisePatchParams; sizes: rows, tokens, patch, layers, projections, evaluations,
// max_polls, squash, whether the weights are float16, channels. Returns what went wrong, or null.
extern "C" const char* denoise_patch(void* const* tensors, const int64_t* sizes, float eps,
                                     int blocks, uint32_t seed, int late_stores, int sleeping) {
  using namespace bdk;
  int at = 0;
  const auto next = [&](auto& pointer) {
    pointer = static_cast<std::remove_reference_t<decltype(pointer)>>(tensors[at++]);
  };
  const auto size = [&](int i) { return static_cast<int>(sizes[i]); };
  DenoisePatchParams p{};
  next(p.x);
  next(p.modulation);
  next(p.table);
  next(p.in_weight);
  next(p.in_bias);
  next(p.norm_weight);
  next(p.norm_bias);
  next(p.weight1);
  next(p.bias1);
  next(p.weight2);
  next(p.bias2);
  next(p.out_weight);
  next(p.out_bias);
  next(p.attention_norm_weight);
  next(p.attention_norm_bias);
  next(p.qkv_weight);
  next(p.qkv_bias);
  next(p.wo_weight);
  next(p.wo_bias);
  next(p.cfg);
  next(p.noise);
  next(p.keys);
  next(p.y);
  next(p.status);
  next(p.words);
  p.rows = size(0);
  p.tokens = size(1);
  p.patch = size(2);
  p.layers = size(3);
  p.projections = std::min(size(4), size(3));
  p.evaluations = size(5);
  p.max_polls = size(6);
  p.squash = sizes[7] != 0;
  p.width = ((p.qkv_weight != nullptr ? 6 : 3) * size(4) + 2) * sizes[9];
  p.eps = eps;
  emulated::adversaries = {late_stores != 0, sleeping != 0};
  emulated::max_turns = 100000;
  using Half = std::conditional_t<kAll, __half, __nv_bfloat16>;
  return sizes[8] ? denoise<Half>(p, size(9), blocks, seed)
                  : denoise<__nv_bfloat16>(p, size(9), blocks, seed);
}
