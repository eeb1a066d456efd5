// The device code of denoise_patch on the CPU, for narrow heads.
#include "card.h"
//
#include "cuda/denoise_patch/denoise_patch_sm90.cuh"

namespace bdk {

constexpr int kC = 128, kH = 256;

template <class T, int kRows>
const char* denoise(const DenoisePatchParams& params, int blocks, uint32_t seed) {
  return emulated::launch_clusters(blocks, blocks, kPatchThreads,
                                   DenoisePatch<T, kC, kH, kRows>::kSharedBytes, seed,
                                   [&] { denoise_patch_kernel<T, kC, kH, kRows>(params); });
}

template <class T>
const char* denoise(const DenoisePatchParams& params, int blocks, uint32_t seed) {
  if (params.rows <= 8) return denoise<T, 8>(params, blocks, seed);
  if (params.rows <= 16) return denoise<T, 16>(params, blocks, seed);
  return denoise<T, 32>(params, blocks, seed);
}

}  // namespace bdk

// tensors: as in DenoisePatchParams; sizes: rows, tokens, patch, layers, projections, evaluations,
// max_polls, squash, whether the weights are float16. Returns what went wrong, or null.
extern "C" const char* denoise_patch(void* const* tensors, const int64_t* sizes, float eps,
                                     int blocks, uint32_t seed, int late_stores,
                                     int sleeping_blocks) {
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
  p.projections = size(4);
  p.evaluations = size(5);
  p.max_polls = size(6);
  p.squash = sizes[7] != 0;
  p.width = (3 * p.projections + 2) * kC;
  p.eps = eps;
  emulated::adversaries = {late_stores != 0, sleeping_blocks != 0};
  emulated::max_turns = 100000;
  return sizes[8] ? denoise<__half>(p, blocks, seed) : denoise<__nv_bfloat16>(p, blocks, seed);
}
