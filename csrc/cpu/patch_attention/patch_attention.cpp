// patch_attention: entries, choice of the instruction set.
#include "cpu/patch_attention/patch_attention.h"

#include "bitdance_kernels.h"
#include "cpu/common/bfloat16_tiles.h"
#include "cpu/common/isa.h"
#include "cpu/common/parallel.h"
#include "cpu/common/wide_rows.h"

namespace bdk {
namespace {

// Multiply-adds a thread must have to be worth starting: about 5 us.
constexpr int64_t kGrain = int64_t{1} << 15;
// Tokens from which sixteen at a time pay.
constexpr int64_t kMinTilePatch = 4;
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

// Calls use(token, channel) with the first token of every patch and the first channel of its heads.
template <class Use>
void for_all_heads(int64_t rows, int64_t patch, int64_t heads, int64_t head_dim, int threads,
                   const Use& use) {
  const int64_t grain = kGrain / (2 * patch * patch * head_dim) + 1;
  parallel_for(rows * heads, grain, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) use(i / heads * patch, i % heads * head_dim);
  });
}

// One head of some tokens: in place, or widened into or narrowed from a buffer.
class Tokens {
 public:
  Tokens(bdk_rows rows, int64_t token, int64_t channel, int64_t patch, int64_t head_dim)
      : rows_(rows),
        stride_(rows.stride),
        token_(token),
        channel_(channel),
        patch_(patch),
        head_dim_(head_dim) {}

  Matrix read(float* buffer) const {
    if (rows_.wide()) return place(nullptr);
    for (int64_t t = 0; t < patch_; ++t) {
      rows_.read(token_ + t, channel_, head_dim_, buffer + t * head_dim_);
    }
    return {buffer, head_dim_};
  }
  // Where to write; `put` then stores it.
  Matrix place(float* buffer) const {
    if (!rows_.wide()) return {buffer, head_dim_};
    return {rows_.place(token_, channel_, nullptr), stride_};
  }
  void put(const float* buffer) const {
    for (int64_t t = 0; t < patch_; ++t) {
      rows_.put(token_ + t, channel_, head_dim_, buffer + t * head_dim_);
    }
  }

 private:
  WideRows rows_;
  int64_t stride_, token_, channel_, patch_, head_dim_;
};

constexpr int kTokens = kMaxPatch * kMaxHeadDim;

// False where it is left to the loops in float32.
bool forward_in_tiles(bdk_rows qkv, bdk_rows out, int64_t token, int64_t channel, int64_t patch,
                      int64_t channels, int64_t head_dim) {
#ifdef BDK_X86
  static_assert(kMaxPatch <= kTileRows && kMaxHeadDim <= kTileChannels);
  const auto at = [channel](bdk_rows rows, int64_t row) {
    return static_cast<uint16_t*>(rows.data) + row * rows.stride + channel;
  };
  const uint16_t* q = at(qkv, token);
  const auto size = static_cast<int>(head_dim);
  const TileHead head = {q + channels, q + 2 * channels,
                         qkv.stride,   qkv.stride,
                         size,         1.0f / sqrtf(static_cast<float>(size))};
  TileRow rows[kMaxPatch];
  for (int64_t t = 0; t < patch; ++t) {
    rows[t] = {at(qkv, token + t), at(out, token + t), 0, static_cast<int>(patch)};
  }
  return attend_in_tiles(head, rows, static_cast<int>(patch), nullptr);
#else
  return false;
#endif
}

}  // namespace
}  // namespace bdk

int bdk_patch_attention_cpu(bdk_rows qkv, bdk_rows out, int64_t rows, int64_t patch, int64_t heads,
                            int64_t head_dim, int threads) {
  using namespace bdk;
  if (!are_dtypes(qkv, out) || qkv.dtype != out.dtype) return BDK_BAD_DTYPE;
  if (!in_range(rows, patch, heads, head_dim, threads)) return BDK_BAD_SIZE;
  if (patch == 0) return BDK_OK;
  const PatchAttentionLoops& loops = choose();
  const int64_t channels = heads * head_dim;
  const bool tiles = qkv.dtype == kBFloat16 && has_bfloat16_tiles() && patch > kMinTilePatch &&
                     head_dim % kTileChannelsUnit == 0;
  for_all_heads(rows, patch, heads, head_dim, threads, [&](int64_t token, int64_t channel) {
    if (tiles && forward_in_tiles(qkv, out, token, channel, patch, channels, head_dim)) return;
    alignas(64) float buffers[4][kTokens];
    const auto part = [&](int64_t i) {
      return Tokens(qkv, token, channel + i * channels, patch, head_dim).read(buffers[i]);
    };
    const Tokens result(out, token, channel, patch, head_dim);
    const Matrix to = result.place(buffers[3]);
    loops.forward({part(0), part(1), part(2), static_cast<int>(patch), static_cast<int>(head_dim)},
                  const_cast<float*>(to.at), to.stride);
    result.put(buffers[3]);
  });
  return BDK_OK;
}

int bdk_patch_attention_backward_cpu(bdk_rows grad, bdk_rows qkv, bdk_rows grad_qkv, int64_t rows,
                                     int64_t patch, int64_t heads, int64_t head_dim, int threads) {
  using namespace bdk;
  if (!are_dtypes(grad, qkv, grad_qkv)) return BDK_BAD_DTYPE;
  if (!in_range(rows, patch, heads, head_dim, threads)) return BDK_BAD_SIZE;
  if (patch == 0) return BDK_OK;
  const PatchAttentionLoops& loops = choose();
  const int64_t channels = heads * head_dim;
  for_all_heads(rows, patch, heads, head_dim, threads, [&](int64_t token, int64_t channel) {
    alignas(64) float buffers[7][kTokens];
    const auto part = [&](bdk_rows of, int64_t i) {
      return Tokens(of, token, channel + i * channels, patch, head_dim);
    };
    const Tokens results[] = {part(grad_qkv, 0), part(grad_qkv, 1), part(grad_qkv, 2)};
    float* to[3];
    for (int i = 0; i < 3; ++i) to[i] = const_cast<float*>(results[i].place(buffers[4 + i]).at);
    loops.backward(
        {part(qkv, 0).read(buffers[0]), part(qkv, 1).read(buffers[1]),
         part(qkv, 2).read(buffers[2]), static_cast<int>(patch), static_cast<int>(head_dim)},
        part(grad, 0).read(buffers[3]), to[0], to[1], to[2], results[0].place(buffers[4]).stride);
    for (int i = 0; i < 3; ++i) results[i].put(buffers[4 + i]);
  });
  return BDK_OK;
}
