// block_decode_attention: entry, choice of the instruction set.
#include "cpu/block_decode_attention/block_decode_attention.h"

#include "bitdance_kernels.h"
#include "cpu/common/isa.h"
#include "cpu/common/parallel.h"
#include "cpu/common/wide_rows.h"

namespace bdk {
namespace {

// Multiply-adds a thread must have to be worth starting: about 20 us.
constexpr int64_t kGrain = int64_t{1} << 19;
constexpr DecodeLoops kScalarLoops = {decode_attend};

int64_t filled(int64_t length, int64_t cache_tokens) {
  return length < 0 ? 0 : length < cache_tokens ? length : cache_tokens;
}

const DecodeLoops& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kDecodeAvx512;
  if (active_isa() == kAvx2) return kDecodeAvx2;
#endif
  return kScalarLoops;
}

}  // namespace
}  // namespace bdk

int bdk_block_decode_attention_cpu(const void* q, const void* k_cache, const void* v_cache,
                                   const int32_t* lengths, void* out, int64_t batch, int64_t tokens,
                                   int64_t heads, int64_t kv_heads, int64_t head_dim,
                                   int64_t cache_tokens, int64_t q_batch, int64_t q_token,
                                   int64_t q_head, int64_t k_batch, int64_t k_token, int64_t k_head,
                                   int64_t v_batch, int64_t v_token, int64_t v_head, float scale,
                                   int dtype, int threads) {
  using namespace bdk;
  if (!is_dtype(dtype)) return BDK_BAD_DTYPE;
  if (batch < 0 || tokens < 0 || kv_heads < 1 || heads % kv_heads != 0 || head_dim < 1 ||
      head_dim > kDecodeMaxChannels || cache_tokens < 0 || threads < 1) {
    return BDK_BAD_SIZE;
  }
  const DecodeLoops& loops = choose();
  const Halves& all = choose_halves();
  const HalfLoops* const halves = dtype == kFloat32   ? nullptr
                                  : dtype == kFloat16 ? &all.float16
                                                      : &all.bfloat16;
  const int64_t bytes = dtype == kFloat32 ? 4 : 2;
  const auto at = [bytes](const void* base, int64_t element) {
    return static_cast<const char*>(base) + element * bytes;
  };
  const int64_t group = heads / kv_heads, rows = tokens * group;
  const int64_t tiles = (rows + kDecodeRows - 1) / kDecodeRows;
  int64_t longest = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t keys = filled(lengths[b], cache_tokens);
    longest = keys > longest ? keys : longest;
  }
  const int64_t work = 2 * (rows < kDecodeRows ? rows : kDecodeRows) * longest * head_dim;
  parallel_for(batch * kv_heads * tiles, kGrain / (work + 1) + 1, 1, threads,
               [&](int64_t begin, int64_t end) {
                 alignas(64) float q_tile[kDecodeRows * kDecodeMaxChannels];
                 alignas(64) float result[kDecodeRows * kDecodeMaxChannels];
                 float lse[kDecodeRows];
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t b = i / (kv_heads * tiles), kv = i / tiles % kv_heads;
                   const int64_t first = i % tiles * kDecodeRows;
                   const int some =
                       static_cast<int>(rows - first < kDecodeRows ? rows - first : kDecodeRows);
                   const DecodeHead head = {at(k_cache, b * k_batch + kv * k_head),
                                            at(v_cache, b * v_batch + kv * v_head),
                                            halves,
                                            k_token,
                                            v_token,
                                            filled(lengths[b], cache_tokens),
                                            static_cast<int>(head_dim),
                                            scale};
                   // Row r of a key-value head is token r / group and query head r % group of its
                   // group.
                   const auto offset = [&](int64_t r, int64_t token, int64_t head_stride) {
                     return r / group * token + (kv * group + r % group) * head_stride;
                   };
                   for (int r = 0; r < some; ++r) {
                     const void* from = at(q, b * q_batch + offset(first + r, q_token, q_head));
                     float* to = q_tile + r * head_dim;
                     if (halves == nullptr) {
                       memcpy(to, from, sizeof(float) * head_dim);
                     } else {
                       halves->widen(static_cast<const uint16_t*>(from), to, head_dim);
                     }
                   }
                   if (head.keys > 0) {
                     loops.attend(head, q_tile, some, result, lse);
                   } else {
                     memset(result, 0, sizeof(float) * some * head_dim);
                   }
                   for (int r = 0; r < some; ++r) {
                     const float* from = result + r * head_dim;
                     char* to = static_cast<char*>(out) +
                                bytes * (b * tokens * heads * head_dim +
                                         offset(first + r, heads * head_dim, head_dim));
                     if (halves == nullptr) {
                       memcpy(to, from, sizeof(float) * head_dim);
                     } else {
                       halves->narrow(from, reinterpret_cast<uint16_t*>(to), head_dim);
                     }
                   }
                 }
               });
  return BDK_OK;
}
