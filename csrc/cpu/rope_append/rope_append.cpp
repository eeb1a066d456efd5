// rope_append: one pass over the new tokens, a few thousand values in a step of a model.
#include <math.h>
#include <string.h>

#include "bitdance_kernels.h"
#include "cpu/common/parallel.h"
#include "cpu/common/rotation.h"

namespace bdk {
namespace {

// Values a thread must have to be worth starting: about 10 us.
constexpr int64_t kGrain = 16384;

// to = x / sqrt(mean(x^2) + eps) weight, rotated; without a weight, x rotated.
void norm_and_rotate(const float* x, const float* weight_or_null, float eps, int64_t channels,
                     const Rotation& rotate, float* to) {
  if (weight_or_null == nullptr) return rotate(x, to);
  double squares = 0.0;
  for (int64_t d = 0; d < channels; ++d) {
    squares += static_cast<double>(x[d]) * static_cast<double>(x[d]);
  }
  const double mean = squares / static_cast<double>(channels);
  const float factor = static_cast<float>(1.0 / sqrt(mean + static_cast<double>(eps)));
  alignas(64) float normed[kMaxHeadChannels];
  for (int64_t d = 0; d < channels; ++d) normed[d] = x[d] * (factor * weight_or_null[d]);
  rotate(normed, to);
}

}  // namespace
}  // namespace bdk

int bdk_rope_append_cpu(const float* qkv, float* q, float* k_cache, float* v_cache,
                        const int32_t* position, const float* freqs, const float* q_norm_or_null,
                        const float* k_norm_or_null, int64_t batch, int64_t tokens, int64_t heads,
                        int64_t kv_heads, int64_t head_dim, int64_t cache_tokens, int64_t positions,
                        int64_t qkv_batch, int64_t qkv_token, int64_t k_batch, int64_t k_token,
                        int64_t k_head, int64_t v_batch, int64_t v_token, int64_t v_head, float eps,
                        int interleaved, int threads) {
  using namespace bdk;
  if (batch < 0 || tokens < 0 || heads < 1 || kv_heads < 1 || head_dim < 2 || head_dim % 2 != 0 ||
      head_dim > kMaxHeadChannels || threads < 1) {
    return BDK_BAD_SIZE;
  }
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t last = position[b] + tokens;
    if (position[b] < 0 || last > cache_tokens || last > positions) return BDK_BAD_INDEX;
  }
  const int64_t grain = kGrain / ((heads + 2 * kv_heads) * head_dim) + 1;
  parallel_for(batch * tokens, grain, 1, threads, [&](int64_t begin, int64_t end) {
    Rotation rotate(head_dim, interleaved != 0, false);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / tokens, p = i % tokens, row = position[b] + p;
      const float* from = qkv + b * qkv_batch + p * qkv_token;
      rotate.set(freqs + row * head_dim);
      for (int64_t h = 0; h < heads; ++h, from += head_dim) {
        norm_and_rotate(from, q_norm_or_null, eps, head_dim, rotate,
                        q + (i * heads + h) * head_dim);
      }
      for (int64_t h = 0; h < kv_heads; ++h, from += head_dim) {
        norm_and_rotate(from, k_norm_or_null, eps, head_dim, rotate,
                        k_cache + b * k_batch + row * k_token + h * k_head);
      }
      for (int64_t h = 0; h < kv_heads; ++h, from += head_dim) {
        memcpy(v_cache + b * v_batch + row * v_token + h * v_head, from, sizeof(float) * head_dim);
      }
    }
  });
  return BDK_OK;
}
