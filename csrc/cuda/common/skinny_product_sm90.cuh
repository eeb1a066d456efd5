// Products of few rows: y = epilogue(norm(x) W^T + b), for up to 128 rows of 16-bit values.
//
// Such a product waits, for its weights and for the kernel before it, so it is spread over all
// multiprocessors and fetches the weights while it waits. The weights are the A operand of the
// tensor cores, so that 8 tokens need no padding: a tile is 16 features, a step 16 channels. A
// block takes `tiles` tiles and a share of the channels, `parts` warps dividing that share; the
// blocks of a cluster divide the channels among them. Partial sums go to the shared memory of the
// block that finishes an item, which is a tile by 8 tokens.
//
// Weights may be float8: exact in the dtype of the inputs, which they are widened to after they
// have arrived, and with a scale for each feature, a power of two by which the sums are multiplied.
//
// Until wait_for_previous() only weights, norms' parameters and modulations are read, which the
// kernels of a chain do not write, see bdk_skinny_product_cuda.
#pragma once

#include <type_traits>

#include "common/rotation.h"
#include "cuda/common/float8.cuh"
#include "cuda/common/load_store.cuh"
#include "cuda/common/machine_sm90.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/skinny_product_params.h"

namespace bdk {

// One thread's share of a product. kTokens: maximum of rows; kNorm: whether x is normalized; kRope:
// whether the epilogue is the rotation of heads; kFloat8: whether the weight is float8.
template <class T, int kTokens, bool kNorm, bool kRope, bool kFloat8>
struct SkinnyProduct {
  static constexpr int kTokenTiles = kTokens / 8, kSteps = kSkinnySteps<kTokens, kFloat8>;
  static constexpr int kHeld =
      kTokens > 64 || kRope ? 1 : 2;                   // words that a thread normalizes at a time
  static constexpr int kLanes = kTokens > 32 ? 4 : 8;  // that measure a row

  using Weights = std::conditional_t<kFloat8, uint2, uint4>;  // of a lane and a step

  const SkinnyParams& p;
  const int threads, warp, lane, rank, cluster;
  const int all_steps, first_step, end_step;  // of this block
  const int pitch;                            // of a row of normalized inputs in shared memory
  T* inputs;                                  // [rows][pitch]
  float* affine;                              // [2][pitch]: the norm's weight and bias
  float2* stats;                              // [rows]: mean, 1 / deviation
  float* squares_of_heads;                    // [warps][8 tokens]
  float4* partial;                            // [slots][split * parts][32]
  float sums[kTokenTiles][4];
  Weights weights[kSteps];  // of a chunk of channels
  uint4 x[kHeld], scale[kHeld], shift[kHeld];

  __device__ SkinnyProduct(const SkinnyParams& params, unsigned char* shared)
      : p(params),
        threads(32 * params.tiles * params.parts),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32),
        rank(params.split > 1 ? cluster_rank() : 0),
        cluster(blockIdx.x / params.split),
        all_steps(params.channels / 16),
        first_step(rank * all_steps / params.split),
        end_step((rank + 1) * all_steps / params.split),
        pitch(skinny_pitch(params.parts, params.depth)),
        inputs(reinterpret_cast<T*>(shared)),
        affine(reinterpret_cast<float*>(inputs + params.rows * pitch)),
        stats(reinterpret_cast<float2*>(affine + 2 * pitch)),
        squares_of_heads(reinterpret_cast<float*>(stats + params.rows)),
        partial(reinterpret_cast<float4*>(shared + skinny_inputs_bytes(params.rows, pitch))) {}

  __device__ int tile() const { return cluster * p.tiles + warp % p.tiles; }
  __device__ bool has_tile() const { return tile() < p.features / 16; }
  __device__ int chunk_steps() const { return p.parts * p.depth; }
  // First step of this warp in a chunk.
  __device__ int step_of(int chunk) const {
    return first_step + (chunk * p.parts + warp / p.tiles) * p.depth;
  }

  // Where the weights of a tile begin, with the scales behind those that are float8.
  __device__ const Weights* weights_of(int tile) const {
    return static_cast<const Weights*>(p.weight) + int64_t{tile} * (all_steps + kFloat8) * 32;
  }

  __device__ void load_weights(int chunk) {
    const int step = step_of(chunk);
    const Weights* from = weights_of(tile()) + step * 32 + lane;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (s < p.depth && step + s < end_step && has_tile()) weights[s] = load_weight(from + s * 32);
    }
  }

  // Words of 8 channels of a chunk, row by row; `at` counts them.
  __device__ int words_of_row(int chunk) const {
    const int left = end_step - first_step - chunk * chunk_steps();
    return 2 * (left < chunk_steps() ? left : chunk_steps());
  }
  __device__ int channel_of(int chunk, int word) const {
    return 16 * (first_step + chunk * chunk_steps()) + 8 * word;
  }

  // Calls f(h, row, word) for the kHeld words of this thread from `first` on.
  template <class Function>
  __device__ void for_words(int chunk, int first, Function f) const {
    const int each = words_of_row(chunk), words = p.rows * each;
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int at = first + h * threads;
      if (at < words) f(h, at / each, at % each);
    }
  }

  static __device__ uint4 word_at(const void* from, int64_t at) {
    return *reinterpret_cast<const uint4*>(static_cast<const T*>(from) + at);
  }

  __device__ void load_inputs(int chunk, int first) {
    for_words(chunk, first, [&](int h, int row, int word) {
      x[h] = word_at(p.x, row * p.x_stride + channel_of(chunk, word));
    });
  }

  __device__ void load_modulation(int chunk, int first) {
    for_words(chunk, first, [&](int h, int row, int word) {
      const int channel = channel_of(chunk, word);
      if (p.scale != nullptr) scale[h] = word_at(p.scale, row * p.scale_stride + channel);
      if (p.shift != nullptr) shift[h] = word_at(p.shift, row * p.shift_stride + channel);
    });
  }

  // The norm's weight and bias of a chunk, into shared memory.
  __device__ void load_affine(int chunk) {
    const int first = channel_of(chunk, 0);
    for (int c = threadIdx.x; c < 8 * words_of_row(chunk); c += threads) {
      affine[c] = p.norm_weight != nullptr
                      ? load_value(p.norm_weight, first + c, p.norm_weight_dtype)
                      : 1.0f;
      affine[pitch + c] =
          p.norm_bias != nullptr ? load_value(p.norm_bias, first + c, p.norm_bias_dtype) : 0.0f;
    }
  }

  // The loaded words, normalized, into shared memory.
  __device__ void stage(int chunk, int first) {
    for_words(chunk, first, [&](int h, int row, int word) {
      if constexpr (kNorm) normalize(x[h], scale[h], shift[h], stats[row], affine + 8 * word);
      *reinterpret_cast<uint4*>(inputs + row * pitch + 8 * word) = x[h];
    });
  }

  __device__ void normalize(uint4& x, const uint4& scale, const uint4& shift, float2 stat,
                            const float* affine) const {
    float v[8], other[8];
    widen8<T>(x, v);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      v[i] = (v[i] - stat.x) * stat.y * affine[i] + affine[pitch + i];
    }
    if (p.scale != nullptr) {
      widen8<T>(scale, other);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] *= 1.0f + other[i];
    }
    if (p.shift != nullptr) {
      widen8<T>(shift, other);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] += other[i];
    }
    x = narrow8<T>(v);
  }

  // Mean and inverse deviation of every row, into stats: from the moments of its groups of 16
  // channels (merged as by Chan, Golub and LeVeque, 1979) or from the row itself. A second pass
  // finds in the L1 cache what the first one has read.
  __device__ void measure_rows() {
    for (int base = 0; base < p.rows; base += threads / kLanes) {
      const int at = base + static_cast<int>(threadIdx.x) / kLanes, lane = threadIdx.x % kLanes;
      const int row = at < p.rows ? at : 0;  // all lanes stay for the sums
      const float2* groups = p.moments + int64_t{row} * all_steps;
      const T* from = static_cast<const T*>(p.x) + row * p.x_stride;
      float mean = 0.0f, squares = 0.0f;
      if (p.moments != nullptr) {
#pragma unroll 6
        for (int g = lane; g < all_steps; g += kLanes) mean += groups[g].x;
        mean = row_sum(mean) / all_steps;
#pragma unroll 6
        for (int g = lane; g < all_steps; g += kLanes) {
          const float2 group = groups[g];
          squares += group.y + 16.0f * (group.x - mean) * (group.x - mean);
        }
      } else {
        float v[8];
        for (int c = 8 * lane; c < p.channels; c += 8 * kLanes) {
          widen8<T>(word_at(from, c), v);
#pragma unroll
          for (int i = 0; i < 8; ++i) mean += v[i];
        }
        mean = row_sum(mean) / p.channels;
        for (int c = 8 * lane; c < p.channels; c += 8 * kLanes) {
          widen8<T>(word_at(from, c), v);
#pragma unroll
          for (int i = 0; i < 8; ++i) squares += (v[i] - mean) * (v[i] - mean);
        }
      }
      squares = row_sum(squares);
      if (p.norm == kSkinnyRmsNorm) {
        squares += p.channels * mean * mean;
        mean = 0.0f;
      }
      if (lane == 0 && at < p.rows) {
        stats[row] = make_float2(mean, rsqrtf(squares / p.channels + p.eps));
      }
    }
  }

  static __device__ float row_sum(float x) {
#pragma unroll
    for (int o = kLanes / 2; o > 0; o /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, o);
    return x;
  }

  __device__ void multiply(int chunk) {
    const int step = step_of(chunk), local = warp / p.tiles * p.depth;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (s >= p.depth || step + s >= end_step) break;
      uint32_t a[4];
      fragment<T>(weights[s], a);
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        if (8 * t >= p.rows) break;
        // Tokens past the last row are columns that nobody reads: any row serves them.
        const int row = 8 * t + lane / 4 < p.rows ? 8 * t + lane / 4 : 0;
        const T* at = inputs + row * pitch + 16 * (local + s) + lane % 4 * 2;
        mma_16x8x16<T>(sums[t], a, *reinterpret_cast<const uint32_t*>(at),
                       *reinterpret_cast<const uint32_t*>(at + 8));
      }
    }
  }

  // What an item's end needs besides its sums: two features (0, 1) of two tokens.
  struct Operands {
    float scale[2], bias[2], residual[2][2], gate[2][2];
  };

  __device__ int feature(int tile, int h) const {
    const int r = lane / 4;
    if (p.epilogue == kSkinnySwiglu) return h * (p.features / 2) + 8 * tile + r;
    if constexpr (kRope) {
      const int d = p.rope.head_dim;
      if (p.rope.interleaved) return 16 * tile + 2 * r + h;
      return 16 * tile / d * d + 16 * tile % d / 2 + r + h * (d / 2);
    }
    return 16 * tile + r + 8 * h;
  }

  __device__ Operands operands(int tile, int token) const {
    Operands o;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int f = feature(tile, h);
      if constexpr (kFloat8) {
        const Weights* behind = weights_of(tile) + all_steps * 32;
        o.scale[h] = reinterpret_cast<const float*>(behind)[lane / 4 + 8 * h];
      }
      o.bias[h] = p.bias != nullptr ? to_float(static_cast<const T*>(p.bias)[f]) : 0.0f;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        o.residual[h][e] = 0.0f;
        o.gate[h][e] = 1.0f;
        if (p.epilogue != kSkinnyGated || token + e >= p.rows) continue;
        const int64_t row = token + e;
        o.residual[h][e] = to_float(static_cast<const T*>(p.residual)[row * p.residual_stride + f]);
        if (p.gate != nullptr) {
          o.gate[h][e] = to_float(static_cast<const T*>(p.gate)[row * p.gate_stride + f]);
        }
      }
    }
    return o;
  }

  static __device__ float rounded(float x) { return to_float(from_float<T>(x)); }

  __device__ void finish(int tile, int token, const Operands& o, float4 sum) const {
    float v[2][2] = {{sum.x + o.bias[0], sum.y + o.bias[0]},
                     {sum.z + o.bias[1], sum.w + o.bias[1]}};
    T* y = static_cast<T*>(p.y);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int64_t row = token + e;
      const bool inside = row < p.rows;
      if (p.epilogue == kSkinnySwiglu) {
        const float gate = rounded(v[0][e]);
        const float value = gate / (1.0f + expf(-gate)) * rounded(v[1][e]);
        if (inside) y[row * (p.features / 2) + feature(tile, 0)] = from_float<T>(value);
        continue;
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (p.epilogue == kSkinnyGated) {
          v[h][e] = o.residual[h][e] + o.gate[h][e] * rounded(v[h][e]);
        }
        const T stored = from_float<T>(v[h][e]);
        if (inside) y[row * p.features + feature(tile, h)] = stored;
        v[h][e] = to_float(stored);
      }
      if (p.y_moments != nullptr) store_moments(tile, row, v[0][e], v[1][e]);
    }
  }

  // Moments of the 16 channels of a token that 8 lanes hold.
  __device__ void store_moments(int tile, int64_t row, float low, float high) const {
    float mean = low + high;
#pragma unroll
    for (int o = 4; o < 32; o *= 2) mean += __shfl_xor_sync(0xFFFFFFFFu, mean, o);
    mean /= 16.0f;
    float squares = (low - mean) * (low - mean) + (high - mean) * (high - mean);
#pragma unroll
    for (int o = 4; o < 32; o *= 2) squares += __shfl_xor_sync(0xFFFFFFFFu, squares, o);
    if (row < p.rows && lane < 4) {
      p.y_moments[row * (p.features / 16) + tile] = make_float2(mean, squares);
    }
  }

  // Pairs of channels of a head, normalized with the other tiles of its group, and appended. All
  // threads of a block call it at once.
  __device__ void finish_head(int tile, int token, const Operands& o, float4 sum, bool exists) {
    const SkinnyRope& r = p.rope;
    float v[2][2] = {{rounded(sum.x + o.bias[0]), rounded(sum.y + o.bias[0])},
                     {rounded(sum.z + o.bias[1]), rounded(sum.w + o.bias[1])}};
    const int head = exists ? feature(tile, 0) / r.head_dim : 0;
    const int channel[2] = {feature(tile, 0) % r.head_dim, feature(tile, 1) % r.head_dim};
    const bool is_query = head < r.heads, is_key = !is_query && head < r.heads + r.kv_heads;
    if (r.q_norm != nullptr || r.k_norm != nullptr) {
      const int first = warp / p.group * p.group;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float squares = v[0][e] * v[0][e] + v[1][e] * v[1][e];
#pragma unroll
        for (int o = 4; o < 32; o *= 2) squares += __shfl_xor_sync(0xFFFFFFFFu, squares, o);
        if (lane < 4) squares_of_heads[8 * warp + 2 * lane + e] = squares;
      }
      __syncthreads();
      const void* norm = is_query ? r.q_norm : is_key ? r.k_norm : nullptr;
      const int dtype = is_query ? r.q_norm_dtype : r.k_norm_dtype;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float squares = 0.0f;
        for (int w = 0; w < p.group; ++w) {
          squares += squares_of_heads[8 * (first + w) + lane % 4 * 2 + e];
        }
        if (!exists || norm == nullptr) continue;
        const float inverse = rsqrtf(squares / r.head_dim + p.eps);
        v[0][e] *= inverse * load_value(norm, channel[0], dtype);
        v[1][e] *= inverse * load_value(norm, channel[1], dtype);
      }
      __syncthreads();  // all have read the squares
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (exists && token + e < p.rows) append(head, channel, token + e, v[0][e], v[1][e]);
    }
  }

  // A pair of channels of a head, rotated unless it is a value, and stored where it belongs.
  __device__ void append(int head, const int (&channel)[2], int row, float a, float b) const {
    const SkinnyRope& r = p.rope;
    const int64_t batch = row / r.tokens, position = int64_t{r.position[batch]} + row % r.tokens;
    T* to;
    if (head < r.heads) {
      to = static_cast<T*>(r.q) + (int64_t{row} * r.heads + head) * r.head_dim;
    } else if (head < r.heads + r.kv_heads) {
      to = static_cast<T*>(r.k_cache) + batch * r.k_batch + position * r.k_token +
           (head - r.heads) * r.k_head;
    } else {
      to = static_cast<T*>(r.v_cache) + batch * r.v_batch + position * r.v_token +
           (head - r.heads - r.kv_heads) * r.v_head;
    }
    if (head < r.heads + r.kv_heads) {
      const int pair = r.interleaved ? channel[0] / 2 : channel[0];
      const float* angle = r.freqs + position * r.head_dim + 2 * pair;
      rotate_pair(a, b, angle[0], angle[1]);
    }
    to[channel[0]] = from_float<T>(a);
    to[channel[1]] = from_float<T>(b);
  }

  __device__ void run() {
    // A block must have begun before another one writes to its shared memory.
    if (p.split > 1) cluster_arrive_relaxed();
    const int chunks = skinny_chunks(all_steps, p.split, chunk_steps());
    load_weights(0);
    if constexpr (kNorm) load_modulation(0, threadIdx.x);
    launch_dependents();  // before anything that takes time
    if constexpr (kNorm) load_affine(0);
    wait_for_previous();
    load_inputs(0, threadIdx.x);
    if constexpr (kNorm) measure_rows();
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) sums[t][0] = sums[t][1] = sums[t][2] = sums[t][3] = 0.0f;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      if (chunk > 0) {
        load_weights(chunk);
        if constexpr (kNorm) load_affine(chunk);
      }
      // The norm is there, and all have read the inputs of the chunk before.
      if (kNorm || chunk > 0) __syncthreads();
      const int words = p.rows * words_of_row(chunk);
      for (int first = threadIdx.x; first < words; first += kHeld * threads) {
        if (chunk > 0 || first >= kHeld * threads) {  // the first words are here already
          load_inputs(chunk, first);
          if constexpr (kNorm) load_modulation(chunk, first);
        }
        stage(chunk, first);
      }
      __syncthreads();
      multiply(chunk);
    }
    reduce();
  }

  // An item is a group of tiles by 8 tokens; block item % split of a cluster finishes it, by a warp
  // for each tile.
  __device__ void reduce() {
    const int token_tiles = (p.rows + 7) / 8, items = p.tiles / p.group * token_tiles;
    const int addends = p.split * p.parts, part = rank * p.parts + warp / p.tiles;
    if (p.split > 1) cluster_wait();
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      if (t >= token_tiles) break;
      const int of_block = warp % p.tiles, item = of_block / p.group * token_tiles + t;
      const int slot = item / p.split * p.group + of_block % p.group;
      float4* to = partial + (slot * addends + part) * 32 + lane;
      const float4 sum = make_float4(sums[t][0], sums[t][1], sums[t][2], sums[t][3]);
      if (p.split > 1) {
        store_to_block(to, item % p.split, sum);
      } else {
        *to = sum;
      }
    }
    const int teams = p.tiles * p.parts / p.group, team = warp / p.group;
    const auto item_of = [&](int base) { return (base + team) * p.split + rank; };
    const auto tile_of = [&](int item) {
      return cluster * p.tiles + item / token_tiles * p.group + warp % p.group;
    };
    const auto token_of = [&](int item) { return item % token_tiles * 8 + lane % 4 * 2; };
    const auto exists = [&](int item) {
      return team < teams && item < items && tile_of(item) < p.features / 16;
    };
    Operands operand{};  // those of the first item arrive meanwhile
    if (exists(item_of(0))) operand = operands(tile_of(item_of(0)), token_of(item_of(0)));
    if (p.split > 1) {
      cluster_sync();
    } else {
      __syncthreads();
    }
    for (int base = 0; base * p.split + rank < items; base += teams) {
      const int item = item_of(base), tile = tile_of(item), token = token_of(item);
      float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (exists(item)) {
        if (base > 0) operand = operands(tile, token);
        const int slot = item / p.split * p.group + warp % p.group;
        const float4* from = partial + slot * addends * 32 + lane;
        for (int a = 0; a < addends; ++a) {
          const float4 v = from[a * 32];
          sum.x += v.x;
          sum.y += v.y;
          sum.z += v.z;
          sum.w += v.w;
        }
        if constexpr (kFloat8) {
          sum.x *= operand.scale[0];
          sum.y *= operand.scale[0];
          sum.z *= operand.scale[1];
          sum.w *= operand.scale[1];
        }
      }
      if constexpr (kRope) {
        finish_head(tile, token, operand, sum, exists(item));
      } else if (exists(item)) {
        finish(tile, token, operand, sum);
      }
    }
  }
};

template <class T, int kTokens, bool kNorm, bool kRope, bool kFloat8>
__global__ void __launch_bounds__(kSkinnyMaxThreads<kTokens, kRope>)
    skinny_product_kernel(const SkinnyParams params) {
  BDK_SHARED_BYTES(shared);
  SkinnyProduct<T, kTokens, kNorm, kRope, kFloat8> product(params, shared);
  product.run();
}

}  // namespace bdk
