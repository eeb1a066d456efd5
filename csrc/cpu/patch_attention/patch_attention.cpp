// patch_attention: entries, choice of the instruction set.
#include "cpu/patch_attention/patch_attention.h"

#include "bitdance_kernels.h"
#include "cpu/common/isa.h"
#include "cpu/common/parallel.h"
#include "cpu/common/wide_rows.h"

namespace bdk {
namespace {

// Multiply-adds a thread must have to be worth starting: about 5 us.
constexpr int64_t kGrain = int64_t{1} << 15;
constexpr PatchAttentionLoops kScalarLoops = {patch_attention_forward, patch_attention_backward};

const PatchAttentionLoops& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kPatchAttentionAvx512;
  if (active_isa() == kAvx2) return kPatchAttentionAvx2;
#endif
  return kScalarLoops;
}

bool in_range(int64_t rows, int64_t patch, int64_t heads, int64_t head_dim, int threads) {
  return rows >= 0 && patch >= 0 && patch <= kMaxPatch && heads >= 1 && head_dim >= 1 &&
         head_dim <= kMaxHeadDim && threads >= 1;
}

// Calls use(head, token, channel) for every patch and head, with the first token of the patch and
// the first channel of the head.
template <class Use>
void for_all_heads(bdk_rows qkv, int64_t rows, int64_t patch, int64_t heads, int64_t head_dim,
                   int threads, const Use& use) {
  const int64_t channels = heads * head_dim;
  const int64_t grain = kGrain / (2 * patch * patch * head_dim) + 1;
  parallel_for(rows * heads, grain, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i / heads * patch;
      const int64_t channel = i % heads * head_dim;
      const float* q = static_cast<const float*>(qkv.data) + token * qkv.stride + channel;
      use(PatchHead{q, q + channels, q + 2 * channels, qkv.stride, static_cast<int>(patch),
                    static_cast<int>(head_dim)},
          token, channel);
    }
  });
}

}  // namespace
}  // namespace bdk

int bdk_patch_attention_cpu(bdk_rows qkv, float* out, int64_t rows, int64_t patch, int64_t heads,
                            int64_t head_dim, int threads) {
  using namespace bdk;
  if (!all_wide(qkv)) return BDK_BAD_DTYPE;
  if (!in_range(rows, patch, heads, head_dim, threads)) return BDK_BAD_SIZE;
  if (patch == 0) return BDK_OK;
  const PatchAttentionLoops& loops = choose();
  const int64_t channels = heads * head_dim;
  for_all_heads(qkv, rows, patch, heads, head_dim, threads,
                [&](const PatchHead& head, int64_t token, int64_t channel) {
                  loops.forward(head, out + token * channels + channel, channels);
                });
  return BDK_OK;
}

int bdk_patch_attention_backward_cpu(bdk_rows grad, bdk_rows qkv, float* grad_qkv, int64_t rows,
                                     int64_t patch, int64_t heads, int64_t head_dim, int threads) {
  using namespace bdk;
  if (!all_wide(grad, qkv)) return BDK_BAD_DTYPE;
  if (!in_range(rows, patch, heads, head_dim, threads)) return BDK_BAD_SIZE;
  if (patch == 0) return BDK_OK;
  const PatchAttentionLoops& loops = choose();
  const int64_t channels = heads * head_dim;
  for_all_heads(qkv, rows, patch, heads, head_dim, threads,
                [&](const PatchHead& head, int64_t token, int64_t channel) {
                  float* grad_q = grad_qkv + token * 3 * channels + channel;
                  const float* grad_out =
                      static_cast<const float*>(grad.data) + token * grad.stride;
                  loops.backward(head, grad_out + channel, grad.stride, grad_q, grad_q + channels,
                                 grad_q + 2 * channels, 3 * channels);
                });
  return BDK_OK;
}
