// block_decode_attention: entry, choice of the instruction set.
#include "cpu/block_decode_attention/block_decode_attention.h"

#include "bitdance_kernels.h"
#include "cpu/common/bfloat16_tiles.h"
#include "cpu/common/isa.h"
#include "cpu/common/parallel.h"
#include "cpu/common/wide_rows.h"

namespace bdk {
namespace {

// Multiply-adds a thread must have to be worth starting: about 20 us.
constexpr int64_t kGrain = int64_t{1} << 19;
// Query rows of a head from which sixteen at a time pay.
constexpr int64_t kMinTileRows = 5;
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
  const bool in_tiles = dtype == kBFloat16 && has_bfloat16_tiles() && rows >= kMinTileRows &&
                        head_dim % kTileChannelsUnit == 0;
  const int64_t at_once = in_tiles ? kTileRows : kDecodeRows;
  const int64_t tiles = (rows + at_once - 1) / at_once;
  int64_t longest = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t keys = filled(lengths[b], cache_tokens);
    longest = keys > longest ? keys : longest;
  }
  const int64_t work = 2 * (rows < at_once ? rows : at_once) * longest * head_dim;
  // Row r of a key-value head is token r / group and query head r % group of its group.
  const auto offset = [group](int64_t kv, int64_t r, int64_t token, int64_t head) {
    return r / group * token + (kv * group + r % group) * head;
  };
  const auto q_at = [&](int64_t b, int64_t kv, int64_t r) {
    return at(q, b * q_batch + offset(kv, r, q_token, q_head));
  };
  const auto out_at = [&](int64_t b, int64_t kv, int64_t r) {
    const int64_t first = b * tokens * heads * head_dim;
    return const_cast<char*>(at(out, first + offset(kv, r, heads * head_dim, head_dim)));
  };
  const auto attend = [&](const DecodeHead& head, int64_t b, int64_t kv, int64_t first, int count) {
    alignas(64) float q_tile[kDecodeRows * kDecodeMaxChannels];
    alignas(64) float result[kDecodeRows * kDecodeMaxChannels];
    float lse[kDecodeRows];
    for (int r = 0; r < count; ++r) {
      float* to = q_tile + r * head_dim;
      if (halves == nullptr) {
        memcpy(to, q_at(b, kv, first + r), sizeof(float) * head_dim);
      } else {
        halves->widen(reinterpret_cast<const uint16_t*>(q_at(b, kv, first + r)), to, head_dim);
      }
    }
    if (head.keys > 0) {
      loops.attend(head, q_tile, count, result, lse);
    } else {
      memset(result, 0, sizeof(float) * count * head_dim);
    }
    for (int r = 0; r < count; ++r) {
      const float* from = result + r * head_dim;
      char* to = out_at(b, kv, first + r);
      if (halves == nullptr) {
        memcpy(to, from, sizeof(float) * head_dim);
      } else {
        halves->narrow(from, reinterpret_cast<uint16_t*>(to), head_dim);
      }
    }
  };
  // False where it is left to the loops in float32.
  const auto attended_in_tiles = [&](const DecodeHead& head, int64_t b, int64_t kv, int64_t first,
                                     int count) {
#ifdef BDK_X86
    if (!in_tiles || head.keys > INT32_MAX) return false;
    TileRow some[kTileRows];
    for (int r = 0; r < count; ++r) {
      some[r] = {reinterpret_cast<const uint16_t*>(q_at(b, kv, first + r)),
                 reinterpret_cast<uint16_t*>(out_at(b, kv, first + r)), 0,
                 static_cast<int>(head.keys)};
    }
    const TileHead tiled = {static_cast<const uint16_t*>(head.k),
                            static_cast<const uint16_t*>(head.v),
                            head.k_stride,
                            head.v_stride,
                            head.head_dim,
                            head.scale};
    return attend_in_tiles(tiled, some, count, nullptr);
#else
    return false;
#endif
  };
  parallel_for(batch * kv_heads * tiles, kGrain / (work + 1) + 1, 1, threads,
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t b = i / (kv_heads * tiles), kv = i / tiles % kv_heads;
                   const DecodeHead head = {at(k_cache, b * k_batch + kv * k_head),
                                            at(v_cache, b * v_batch + kv * v_head),
                                            dtype,
                                            halves,
                                            k_token,
                                            v_token,
                                            filled(lengths[b], cache_tokens),
                                            static_cast<int>(head_dim),
                                            scale};
                   const int64_t first = i % tiles * at_once;
                   const int64_t last = first + at_once < rows ? first + at_once : rows;
                   const auto count = static_cast<int>(last - first);
                   if (attended_in_tiles(head, b, kv, first, count)) continue;
                   for (int64_t r = first; r < last; r += kDecodeRows) {
                     attend(head, b, kv, r,
                            static_cast<int>(last - r < kDecodeRows ? last - r : kDecodeRows));
                   }
                 }
               });
  return BDK_OK;
}
