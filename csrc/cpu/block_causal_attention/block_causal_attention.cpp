// block_causal_attention: entries, choice of the instruction set. Keys and values of one head at a
// time are copied into the caller's workspace, as float32 and padded; so are its queries, unless
// they can be read and written where they are.
#include "cpu/block_causal_attention/block_causal_attention.h"

#include "bitdance_kernels.h"
#include "cpu/common/bfloat16_tiles.h"
#include "cpu/common/isa.h"
#include "cpu/common/parallel.h"
#include "cpu/common/wide_rows.h"

namespace bdk {
namespace {

// Multiply-adds a thread must have to be worth starting: about 20 us.
constexpr int64_t kGrain = int64_t{1} << 19;
constexpr int64_t kMaxTokens = 4096;
constexpr CausalLoops kScalarLoops = kCausalHere;

const CausalLoops& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kCausalAvx512;
  if (active_isa() == kAvx2) return kCausalAvx2;
#endif
  return kScalarLoops;
}

struct Sizes {
  int batch, tokens, heads, kv_heads, head_dim, keys;

  int group() const { return heads / kv_heads; }
  int width() const { return padded(head_dim); }
  int64_t of_tokens() const { return int64_t{tokens} * width(); }
  int64_t of_keys() const { return int64_t{padded(keys)} * width(); }
  int64_t of_weights(int rows) const { return int64_t{rows} * padded(keys); }
};

bool fit(int64_t batch, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t head_dim,
         int64_t keys, int threads) {
  return batch >= 0 && batch <= INT32_MAX && heads <= INT32_MAX && tokens >= 0 &&
         tokens <= kMaxTokens && keys >= 0 && keys <= kMaxTokens && kv_heads >= 1 &&
         heads % kv_heads == 0 && head_dim >= 1 && head_dim <= kMaxChannels && threads >= 1;
}

Sizes sizes_of(int64_t batch, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t head_dim,
               int64_t keys) {
  const auto narrow = [](int64_t size) { return static_cast<int>(size); };
  return {narrow(batch),    narrow(tokens),   narrow(heads),
          narrow(kv_heads), narrow(head_dim), narrow(keys)};
}

// Workspace of one thread, taken from its start.
class Workspace {
 public:
  explicit Workspace(float* at) : at_(at) {}
  float* take(int64_t count) {
    float* taken = at_;
    at_ += count;
    return taken;
  }

 private:
  float* at_;
};

// 0 in the rows [count, width] for which `has_part` is false.
template <class HasPart>
void clear(float* rows, int count, int width, const HasPart& has_part) {
  for (int t = 0; t < count; ++t) {
    if (!has_part(t)) memset(rows + int64_t{t} * width, 0, sizeof(float) * width);
  }
}

// The ranges of one row of the batch.
struct Ranges {
  const int32_t *start, *end;
  int tokens, keys;

  // Whether query t sees a key.
  bool sees(int t) const { return start[t] < end[t] && start[t] < keys && end[t] > 0; }
  // Whether any query sees the key; only asked where a value is not finite.
  bool is_seen(int key) const {
    for (int t = 0; t < tokens; ++t) {
      if (start[t] <= key && key < end[t]) return true;
    }
    return false;
  }
};

// One head of a tensor: rows of float32, padded, in place or in a buffer.
class Head {
 public:
  Head(const bdk_heads& x, int64_t b, int64_t h, int rows, const Sizes& sizes, float* buffer)
      : rows_({data(x, b, h), x.token, x.dtype, 1}),
        count_(rows),
        channels_(sizes.head_dim),
        width_(sizes.width()),
        in_place_(x.dtype == kFloat32 && width_ == channels_),
        at_(in_place_ ? static_cast<float*>(data(x, b, h)) : buffer),
        stride_(in_place_ ? x.token : width_) {}

  float* at() const { return at_; }
  int64_t stride() const { return stride_; }

  Head& read() {
    if (!in_place_) copy(at_);
    return *this;
  }
  // A copy in the buffer, with 0 in the rows for which `has_part` is false.
  template <class HasPart>
  Head& read_some(float* buffer, const HasPart& has_part) {
    in_place_ = false;
    at_ = buffer;
    stride_ = width_;
    copy(at_);
    clear(at_, count_, width_, has_part);
    return *this;
  }
  void write() const {
    if (!in_place_) write(at_);
  }

  // to: [rows, width].
  void copy(float* to) const {
    for (int t = 0; t < count_; ++t, to += width_) {
      const float* row = rows_.read(t, 0, channels_, to);
      if (row != to) memcpy(to, row, sizeof(float) * channels_);
      for (int d = channels_; d < width_; ++d) to[d] = 0.0f;
    }
  }
  void write(const float* from) const {
    for (int t = 0; t < count_; ++t, from += width_) {
      if (rows_.wide()) memcpy(rows_.place(t, 0, nullptr), from, sizeof(float) * channels_);
      rows_.put(t, 0, channels_, from);
    }
  }

 private:
  static void* data(const bdk_heads& x, int64_t b, int64_t h) {
    const int64_t offset = b * x.batch + h * x.head;
    return static_cast<char*>(x.data) + offset * (x.dtype == kFloat32 ? 4 : 2);
  }

  WideRows rows_;
  int count_, channels_, width_;
  bool in_place_;
  float* at_;
  int64_t stride_;
};

// Keys or values of a head, [padded keys, width].
float* copy_keys(const bdk_heads& x, int64_t b, int64_t h, const Sizes& sizes, Workspace& own) {
  float* to = own.take(sizes.of_keys());
  Head(x, b, h, sizes.keys, sizes, nullptr).copy(to);
  const int64_t used = int64_t{sizes.keys} * sizes.width();
  memset(to + used, 0, sizeof(float) * (sizes.of_keys() - used));
  return to;
}

// Queries of a head whose products are those of tiles of bfloat16; false where it is left to the
// loops in float32.
bool attended_in_tiles(const bdk_heads& q, const bdk_heads& k, const bdk_heads& v,
                       const bdk_heads& out, const Ranges& ranges, int64_t b, int64_t h,
                       const Sizes& sizes, float scale, float* lse) {
#ifdef BDK_X86
  const auto at = [](const bdk_heads& x, int64_t batch, int64_t head) {
    return static_cast<uint16_t*>(x.data) + batch * x.batch + head * x.head;
  };
  const int64_t kv_head = h / sizes.group();
  const TileHead head = {at(k, b, kv_head), at(v, b, kv_head), k.token,
                         v.token,           sizes.head_dim,    scale};
  for (int first = 0; first < sizes.tokens; first += kTileRows) {
    TileRow rows[kTileRows];
    const int count = sizes.tokens - first < kTileRows ? sizes.tokens - first : kTileRows;
    for (int i = 0; i < count; ++i) {
      const int t = first + i;
      const int32_t begin = ranges.start[t], end = ranges.end[t];
      rows[i] = {at(q, b, h) + t * q.token, at(out, b, h) + t * out.token, begin < 0 ? 0 : begin,
                 end < sizes.keys ? end : sizes.keys};
    }
    if (!attend_in_tiles(head, rows, count, lse + first)) return false;
  }
  return true;
#else
  return false;
#endif
}

// Calls use(batch, head of keys, workspace) for every head of keys.
template <class Use>
void for_heads(const Sizes& sizes, int products, float* workspace, int64_t size, int threads,
               const Use& use) {
  const int64_t heads = int64_t{sizes.batch} * sizes.kv_heads;
  const int64_t work = products * sizes.group() * sizes.of_tokens() * sizes.keys;
  parallel_for(heads, kGrain / (work + 1) + 1, 1, threads, [&](int64_t begin, int64_t end) {
    // Ranges of different threads begin at least heads / threads apart.
    float* own = workspace + begin * threads / heads * size;
    for (int64_t i = begin; i < end; ++i) {
      use(i / sizes.kv_heads, i % sizes.kv_heads, Workspace(own));
    }
  });
}

}  // namespace
}  // namespace bdk

int bdk_block_causal_attention_cpu(bdk_heads q, bdk_heads k, bdk_heads v, const int32_t* start,
                                   const int32_t* end, int64_t range_batch, bdk_heads out,
                                   float* lse, int64_t batch, int64_t tokens, int64_t heads,
                                   int64_t kv_heads, int64_t head_dim, int64_t keys, float scale,
                                   float* workspace, int64_t workspace_size, int threads) {
  using namespace bdk;
  if (!are_dtypes(q, k, v, out)) return BDK_BAD_DTYPE;
  if (!fit(batch, tokens, heads, kv_heads, head_dim, keys, threads)) return BDK_BAD_SIZE;
  const Sizes sizes = sizes_of(batch, tokens, heads, kv_heads, head_dim, keys);
  const int64_t used = 3 * sizes.of_keys() + 2 * sizes.of_tokens() + sizes.of_weights(kStrip);
  if (workspace_size < used) return BDK_BAD_SIZE;
  const CausalLoops& loops = choose();
  const int width = sizes.width(), group = sizes.group();
  const bool tiles = q.dtype == kBFloat16 && k.dtype == kBFloat16 && v.dtype == kBFloat16 &&
                     out.dtype == kBFloat16 && has_bfloat16_tiles() &&
                     head_dim % kTileChannelsUnit == 0;
  const auto attend = [&](int64_t b, int64_t kv_head, Workspace own) {
    const Ranges ranges = {start + b * range_batch, end + b * range_batch, sizes.tokens,
                           sizes.keys};
    bool done = tiles;
    for (int64_t h = kv_head * group; done && h < (kv_head + 1) * group; ++h) {
      float* const to = lse + (b * heads + h) * tokens;
      done = attended_in_tiles(q, k, v, out, ranges, b, h, sizes, scale, to);
    }
    if (done) return;
    float* of_k = copy_keys(k, b, kv_head, sizes, own);
    float* of_v = copy_keys(v, b, kv_head, sizes, own);
    float* panels = own.take(sizes.of_keys());
    loops.panels(of_k, padded(sizes.keys), width, panels);
    float *q_buffer = own.take(sizes.of_tokens()), *buffer = own.take(sizes.of_tokens());
    float* weights = own.take(sizes.of_weights(kStrip));
    bool finite = loops.are_finite(of_v, width, sizes.keys, width);
    if (!finite) {  // perhaps where no query sees it
      clear(of_v, sizes.keys, width, [&](int key) { return ranges.is_seen(key); });
      finite = loops.are_finite(of_v, width, sizes.keys, width);
    }
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      const Head queries = Head(q, b, h, sizes.tokens, sizes, q_buffer).read();
      const Head result(out, b, h, sizes.tokens, sizes, buffer);
      const CausalHead head = {
          ranges.start, ranges.end,   queries.at(), queries.stride(), of_k,  of_v,  panels,
          nullptr,      sizes.tokens, sizes.keys,   sizes.head_dim,   scale, finite};
      loops.forward(head, result.at(), result.stride(), lse + (b * heads + h) * tokens, weights);
      result.write();
    }
  };
  for_heads(sizes, 2, workspace, workspace_size, threads, attend);
  return BDK_OK;
}

int bdk_block_causal_attention_backward_cpu(bdk_heads grad, bdk_heads q, bdk_heads k, bdk_heads v,
                                            const float* lse, const int32_t* start,
                                            const int32_t* end, int64_t range_batch, bdk_heads dq,
                                            bdk_heads dk, bdk_heads dv, int64_t batch,
                                            int64_t tokens, int64_t heads, int64_t kv_heads,
                                            int64_t head_dim, int64_t keys, float scale,
                                            float* workspace, int64_t workspace_size, int threads) {
  using namespace bdk;
  if (!are_dtypes(grad, q, k, v, dq, dk, dv)) return BDK_BAD_DTYPE;
  if (!fit(batch, tokens, heads, kv_heads, head_dim, keys, threads)) return BDK_BAD_SIZE;
  const Sizes sizes = sizes_of(batch, tokens, heads, kv_heads, head_dim, keys);
  constexpr int kRows = kStrips * kStrip;
  const int64_t used = 6 * sizes.of_keys() + 3 * sizes.of_tokens() + 2 * sizes.of_weights(kRows);
  if (workspace_size < used) return BDK_BAD_SIZE;
  const CausalLoops& loops = choose();
  const int width = sizes.width(), group = sizes.group();
  const auto differentiate = [&](int64_t b, int64_t kv_head, Workspace own) {
    const Ranges ranges = {start + b * range_batch, end + b * range_batch, sizes.tokens,
                           sizes.keys};
    const auto are_finite = [&](const float* values, int64_t stride, int count) {
      return loops.are_finite(values, stride, count, width);
    };
    // Whether the keys are finite once those that no query sees are 0.
    const auto are_seen_finite = [&](float* keys) {
      if (are_finite(keys, width, sizes.keys)) return true;
      clear(keys, sizes.keys, width, [&](int key) { return ranges.is_seen(key); });
      return are_finite(keys, width, sizes.keys);
    };
    float* of_k = copy_keys(k, b, kv_head, sizes, own);
    float* of_v = copy_keys(v, b, kv_head, sizes, own);
    const bool k_finite = are_seen_finite(of_k), v_finite = are_seen_finite(of_v);
    float *k_panels = own.take(sizes.of_keys()), *v_panels = own.take(sizes.of_keys());
    loops.panels(of_k, padded(sizes.keys), width, k_panels);
    loops.panels(of_v, padded(sizes.keys), width, v_panels);
    float *of_dk = own.take(sizes.of_keys()), *of_dv = own.take(sizes.of_keys());
    memset(of_dk, 0, sizeof(float) * sizes.of_keys());
    memset(of_dv, 0, sizeof(float) * sizes.of_keys());
    float* buffers[3];
    for (float*& buffer : buffers) buffer = own.take(sizes.of_tokens());
    float* weights = own.take(sizes.of_weights(kRows));
    float* dscores = own.take(sizes.of_weights(kRows));
    // The same of the rows of queries, with 0 for those that see no key.
    const auto are_seeing_finite = [&](Head& rows, float* buffer) {
      if (are_finite(rows.at(), rows.stride(), sizes.tokens)) return true;
      rows.read_some(buffer, [&](int t) { return ranges.sees(t); });
      return are_finite(rows.at(), rows.stride(), sizes.tokens);
    };
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      const auto head_of = [&](const bdk_heads& x, int buffer) {
        return Head(x, b, h, sizes.tokens, sizes, buffers[buffer]);
      };
      Head queries = head_of(q, 0).read(), gradient = head_of(grad, 1).read();
      const Head result = head_of(dq, 2);
      const bool q_finite = are_seeing_finite(queries, buffers[0]);
      const bool grad_finite = are_seeing_finite(gradient, buffers[1]);
      const bool finite = k_finite && v_finite && q_finite && grad_finite;
      const CausalHead head = {
          ranges.start, ranges.end,   queries.at(), queries.stride(), of_k,  of_v,  k_panels,
          v_panels,     sizes.tokens, sizes.keys,   sizes.head_dim,   scale, finite};
      const CausalGradient wanted = {gradient.at(),
                                     lse + (b * heads + h) * tokens,
                                     gradient.stride(),
                                     result.at(),
                                     result.stride(),
                                     of_dk,
                                     of_dv,
                                     weights,
                                     dscores};
      loops.backward(head, wanted);
      result.write();
    }
    Head(dk, b, kv_head, sizes.keys, sizes, nullptr).write(of_dk);
    Head(dv, b, kv_head, sizes.keys, sizes, nullptr).write(of_dv);
  };
  for_heads(sizes, 5, workspace, workspace_size, threads, differentiate);
  return BDK_OK;
}
