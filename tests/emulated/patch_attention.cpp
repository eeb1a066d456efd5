// The device code of patch_attention on the CPU.
#include "card.h"
//
#include "cuda/patch_attention/patch_attention.cuh"

namespace bdk {

alignas(16) uint4 patch_memory[kPatchShared<128, kPatchMaxWarps> / 16];

template <int kHeadDim, int kWarps>
void attend(const PatchParams& params, unsigned int blocks, bool backward) {
  memset(patch_memory, 0xFF, sizeof patch_memory);  // NaN
  emulated::launch(blocks, 32 * kWarps, backward,
                   [&] { patch_attention_kernel<kHeadDim, kWarps>(params); });
}

template <int kHeadDim>
void attend_any(const PatchParams& params, unsigned int blocks, bool backward) {
  if (params.patch <= kPatchQueries) return attend<kHeadDim, 1>(params, blocks, backward);
  if (params.patch <= 2 * kPatchQueries) return attend<kHeadDim, 2>(params, blocks, backward);
  attend<kHeadDim, kPatchMaxWarps>(params, blocks, backward);
}

}  // namespace bdk

// sizes: stride, rows, patch, heads, head_dim.
extern "C" void patch_attention(const float* qkv, float* out, const int64_t* sizes, float scale,
                                int backward) {
  using namespace bdk;
  const auto size = [&](int i) { return static_cast<int>(sizes[i]); };
  const PatchParams params{qkv, out, sizes[0], size(2), size(3), size(4), scale};
  const unsigned int blocks = static_cast<unsigned int>(sizes[1] * sizes[3]);
  if (params.head_dim <= 64) return attend_any<64>(params, blocks, backward != 0);
  attend_any<128>(params, blocks, backward != 0);
}
