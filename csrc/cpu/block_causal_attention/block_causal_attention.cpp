// block_causal_attention of short sequences: the tiles of block_decode_attention, for queries that
// follow each other and see the same keys, as the tokens of a patch do.
#include "bitdance_kernels.h"
#include "cpu/block_decode_attention/block_decode_attention.h"
#include "cpu/common/parallel.h"

namespace bdk {
namespace {

// Multiply-adds a thread must have to be worth starting: about 20 us.
constexpr int64_t kGrain = int64_t{1} << 19;

}  // namespace
}  // namespace bdk

int bdk_block_causal_attention_cpu(const float* q, const float* k, const float* v,
                                   const int32_t* start, const int32_t* end, int64_t range_batch,
                                   float* out, float* lse, int64_t batch, int64_t tokens,
                                   int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t keys,
                                   int64_t q_batch, int64_t q_token, int64_t q_head,
                                   int64_t k_batch, int64_t k_token, int64_t k_head,
                                   int64_t v_batch, int64_t v_token, int64_t v_head, float scale,
                                   int threads) {
  using namespace bdk;
  if (batch < 0 || tokens < 0 || kv_heads < 1 || heads % kv_heads != 0 || head_dim < 1 ||
      head_dim > kDecodeMaxChannels || keys < 0 || threads < 1) {
    return BDK_BAD_SIZE;
  }
  const DecodeLoops& loops = choose_decode_loops();
  const int64_t group = heads / kv_heads;
  const int64_t work = 2 * tokens * keys * head_dim;
  parallel_for(batch * heads, kGrain / (work + 1) + 1, 1, threads, [&](int64_t from, int64_t to) {
    alignas(64) float q_tile[kDecodeRows * kDecodeMaxChannels];
    for (int64_t i = from; i < to; ++i) {
      const int64_t b = i / heads, h = i % heads;
      const int32_t *first = start + b * range_batch, *last = end + b * range_batch;
      float* lse_row = lse + i * tokens;
      float result[kDecodeRows * kDecodeMaxChannels];
      for (int64_t t = 0; t < tokens;) {
        int some = 0;  // queries from t on with the same keys
        do {
          memcpy(q_tile + some * head_dim, q + b * q_batch + (t + some) * q_token + h * q_head,
                 sizeof(float) * head_dim);
          ++some;
        } while (some < kDecodeRows && t + some < tokens && first[t + some] == first[t] &&
                 last[t + some] == last[t]);
        const int64_t begin = first[t] < 0 ? 0 : first[t], stop = last[t] < keys ? last[t] : keys;
        if (begin < stop) {
          const DecodeHead head = {k + b * k_batch + begin * k_token + h / group * k_head,
                                   v + b * v_batch + begin * v_token + h / group * v_head,
                                   k_token,
                                   v_token,
                                   stop - begin,
                                   static_cast<int>(head_dim),
                                   scale};
          loops.attend(head, q_tile, some, result, lse_row + t);
        } else {
          for (int r = 0; r < some; ++r) lse_row[t + r] = -INFINITY;
          memset(result, 0, sizeof(float) * some * head_dim);
        }
        for (int r = 0; r < some; ++r, ++t) {
          memcpy(out + ((b * tokens + t) * heads + h) * head_dim, result + r * head_dim,
                 sizeof(float) * head_dim);
        }
      }
    }
  });
  return BDK_OK;
}
