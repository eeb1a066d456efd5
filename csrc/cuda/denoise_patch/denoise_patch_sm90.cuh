// Device code of denoise_patch: all evaluations of a head of modulated SwiGLU blocks, and the
// sampler's steps between them, in one launch of as many blocks as run at once.
//
// Every product is cut into tiles of 16 features, which the blocks divide among them; the warps of
// a block divide the channels. A tile is the A operand of mma.m16n8k16, so that 8 rows of a batch
// are its B operand. Weights of the next product are on their way to registers while the results of
// the other blocks are awaited (exchange_sm90.cuh). What comes after the last block of an
// evaluation and before the first of the next is little work: every thread block does all of it,
// and no exchange is needed.
#pragma once

#include <stdint.h>

#include "common/guidance.h"
#include "common/philox.h"
#include "cuda/common/load_store.cuh"
#include "cuda/common/machine_sm90.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/denoise_patch/denoise_patch_config.h"
#include "cuda/denoise_patch/exchange_sm90.cuh"

namespace bdk {

// L layers of C channels and H hidden ones; weights lie as pack_weight orders them.
struct DenoisePatchParams {
  const float* x;          // [tokens, kPatchBits]
  const void* modulation;  // [evaluations, rows, width]: (scale, shift, gate) by projection, then
                           // the scale and shift of the last norm, C channels each
  const float* table;      // [evaluations, 3]
  const uint4 *in_weight, *out_weight;  // [C, kPatchBits], [kPatchBits, C]
  const void *in_bias, *out_bias;       // [C], [kPatchBits]
  const void *norm_weight, *norm_bias;  // [L, C]
  const uint4* weight1;                 // [L, 2 H, C], the rows ordered for SwiGLU
  const void* bias1;                    // [L, 2 H]
  const uint4* weight2;                 // [L, C, H]
  const void* bias2;                    // [L, C]
  const float* cfg;                     // one, or null without guidance
  const float* noise;                   // [evaluations, tokens, kPatchBits], or null
  const int64_t* keys;                  // [tokens / patch, 3], where noise is null
  float* y;                             // [tokens, kPatchBits]
  int* status;                          // becomes 1 where a block waited in vain
  uint4* words;                         // [kRingStages, rows, max(C, H) / 8], all ones
  int64_t width;
  int rows, tokens, patch;               // rows = tokens, or 2 tokens with guidance
  int layers, projections, evaluations;  // projections that a layer takes, at most `layers`
  int max_polls;
  float eps;
  bool squash;
};

template <class T, int kC, int kH, int kRows>
struct DenoisePatchShared {
  static constexpr int kGroups = kRows / 8;
  static constexpr int kPitch = (kC > kH ? kC : kH) + 8;  // 8 rows begin in different banks

  T n[kRows][kPitch];  // input of a product
  float4 partial[kPatchTiles][kGroups][kPatchWarps][32];
  alignas(16) T hidden[kPatchTiles][kRows][8];  // results of the first product in this block
  alignas(16) T stream[kRows][16];              // features of the stream that this block owns
  alignas(16) float state[kRows][kPatchBits];
  float x0[kRows][kPatchBits];
};

// Shared memory of the weights before and after the blocks, where it has room for them.
template <int kC>
struct DenoisePatchResident {
  uint4 in[kC / 16][kPatchBits / 16][32];
  uint4 out[kPatchBits / 16][kC / 16][32];
};

template <class T, int kC, int kH, int kRows>
class DenoisePatch {
 public:
  using Shared = DenoisePatchShared<T, kC, kH, kRows>;
  using Resident = DenoisePatchResident<kC>;
  static constexpr bool kResident = sizeof(Shared) + sizeof(Resident) <= kPatchSharedLimit;
  static constexpr int kSharedBytes = sizeof(Shared) + (kResident ? sizeof(Resident) : 0);
  static_assert(kSharedBytes <= kPatchSharedLimit, "does not fit a multiprocessor");
  static_assert(kC % 128 == 0 && kH % 128 == 0, "8 warps take 16 channels at a time");

  __device__ DenoisePatch(const DenoisePatchParams& params, unsigned char* memory)
      : p(params),
        s(*reinterpret_cast<Shared*>(memory)),
        in(params.in_weight),
        out(params.out_weight),
        exchange(params.words, params.rows, kRowWords, params.max_polls),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32) {
    if constexpr (kResident) {
      Resident& resident = *reinterpret_cast<Resident*>(memory + sizeof(Shared));
      in = copied(&resident.in[0][0][0], params.in_weight);
      out = copied(&resident.out[0][0][0], params.out_weight);
    }
  }

  __device__ void run() {
    const bool done = evaluate_all();
    if (exchange.gave_up()) *p.status = 1;
    if (blockIdx.x != 0) return;
    for (int i = threadIdx.x; i < p.tokens * kPatchBits; i += kPatchThreads) {
      p.y[i] = done ? s.state[i / kPatchBits][i % kPatchBits] : __uint_as_float(0x7FFFFFFFu);
    }
  }

 private:
  static constexpr int kGroups = kRows / 8, kWeights = kC / 16 * (kPatchBits / 16) * 32;
  static constexpr int kTiles1 = 2 * kH / 16, kTiles2 = kC / 16;
  static constexpr int kSteps1 = kC / 16 / kPatchWarps,
                       kSteps2 = kH / 16 / kPatchWarps;  // a warp's
  static constexpr int kRowWords = (kC > kH ? kC : kH) / 8;
  // Whether there are registers for a row's modulation while the weights of two products wait.
  static constexpr bool kModulationFirst = kC <= 1024;

  const DenoisePatchParams& p;
  Shared& s;
  const uint4 *in, *out;
  Exchange exchange;
  const int warp, lane;
  uint4 first[kPatchTiles][kSteps1], second[kSteps2];  // weights on their way

  __device__ uint4* copied(uint4* to, const uint4* from) const {
    for (int i = threadIdx.x; i < kWeights; i += kPatchThreads) to[i] = load_weight(from + i);
    return to;
  }

  __device__ bool evaluate_all() {
    for (int i = threadIdx.x; i < p.tokens * kPatchBits; i += kPatchThreads) {
      s.state[i / kPatchBits][i % kPatchBits] = p.x[i];
    }
    fetch_first(0);
    __syncthreads();
    for (int i = 0; i < p.evaluations; ++i) {
      const T* modulation = static_cast<const T*>(p.modulation) + int64_t{i} * p.rows * p.width;
      project();
      for (int layer = 0; layer < p.layers; ++layer) {
        const T* projection = modulation + layer * p.projections / p.layers * 3 * kC;
        fetch(second, p.weight2 + int64_t{layer} * kTiles2 * kSteps2 * kPatchWarps * 32, blockIdx.x,
              kTiles2);
        if (!first_product(layer, projection)) return false;
        fetch_first(layer + 1 < p.layers ? layer + 1 : 0);
        if (!second_product(layer, projection + 2 * kC)) return false;
      }
      if (!step(i, modulation + p.width - 2 * kC)) return false;
    }
    return true;
  }

  __device__ int tile_of(int t) const { return blockIdx.x + t * gridDim.x; }

  // This warp's share of a tile.
  template <int kSteps>
  __device__ void fetch(uint4 (&to)[kSteps], const uint4* weight, int tile, int tiles) const {
    if (tile >= tiles) return;
    weight += (int64_t{tile} * kPatchWarps + warp) * kSteps * 32 + lane;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) to[k] = load_weight(weight + 32 * k);
  }
  __device__ void fetch_first(int layer) {
    const uint4* weight = p.weight1 + int64_t{layer} * kTiles1 * kSteps1 * kPatchWarps * 32;
#pragma unroll
    for (int t = 0; t < kPatchTiles; ++t) fetch(first[t], weight, tile_of(t), kTiles1);
  }

  // The stream from input_proj of the state, for both halves, into s.n.
  __device__ void project() {
    const T* bias = static_cast<const T*>(p.in_bias);
    for (int tile = warp; tile < kTiles2; tile += kPatchWarps) {
      const int feature = 16 * tile + lane / 4;
      const float bias_low = to_float(bias[feature]), bias_high = to_float(bias[feature + 8]);
      const uint4 a[2] = {in[(2 * tile) * 32 + lane], in[(2 * tile + 1) * 32 + lane]};
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        if (8 * group >= p.tokens) break;
        float sum[4] = {};
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const float* state = &s.state[8 * group + lane / 4][16 * k + lane % 4 * 2];
          multiply(sum, a[k], pack_pair<T>(state[0], state[1]), pack_pair<T>(state[8], state[9]));
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const T low = from_float<T>(sum[e] + bias_low),
                  high = from_float<T>(sum[2 + e] + bias_high);
          const int token = 8 * group + lane % 4 * 2 + e;
          if (token >= p.tokens) continue;
          for (int row = token; row < p.rows; row += p.tokens) {
            s.n[row][feature] = low;
            s.n[row][feature + 8] = high;
            if (tile == static_cast<int>(blockIdx.x)) {
              s.stream[row][lane / 4] = low;
              s.stream[row][lane / 4 + 8] = high;
            }
          }
        }
      }
    }
    __syncthreads();
  }

  // The modulated norm of the stream into s.n, a row at a time by each warp. The stream lies there
  // already (`kLocal`), or comes from the other blocks.
  template <bool kLocal>
  __device__ void norm(const T* scale, const T* shift, const T* weight, const T* bias) {
    constexpr int kWords = (kC / 8 + 31) / 32;
    for (int row = warp; row < p.rows; row += kPatchWarps) {
      const uint4* factors = reinterpret_cast<const uint4*>(scale + row * p.width);
      const uint4* offsets = reinterpret_cast<const uint4*>(shift + row * p.width);
      uint4 x[kWords], factor[kWords], offset[kWords];
      if constexpr (kModulationFirst) {
#pragma unroll
        for (int q = 0; q < kWords; ++q) {
          const int word = lane + 32 * q;
          if (word >= kC / 8) break;
          factor[q] = load_weight(factors + word);
          offset[q] = load_weight(offsets + word);
        }
      }
#pragma unroll
      for (int q = 0; q < kWords; ++q) {
        const int word = lane + 32 * q;
        if (word >= kC / 8) break;
        x[q] = kLocal ? word_of(row, word) : exchange.look(row, word);
      }
      float sum = 0, squares = 0, v[8];
#pragma unroll
      for (int q = 0; q < kWords; ++q) {
        const int word = lane + 32 * q;
        if (word >= kC / 8) break;
        if (!kLocal) exchange.wait(row, word, x[q]);
        widen8<T>(x[q], v);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += v[i];
      }
      const float mean = warp_sum(sum) / kC;
#pragma unroll
      for (int q = 0; q < kWords; ++q) {
        if (lane + 32 * q >= kC / 8) break;
        widen8<T>(x[q], v);
#pragma unroll
        for (int i = 0; i < 8; ++i) squares += (v[i] - mean) * (v[i] - mean);
      }
      const float inverse = rsqrtf(warp_sum(squares) / kC + p.eps);
#pragma unroll
      for (int q = 0; q < kWords; ++q) {
        const int word = lane + 32 * q;
        if (word >= kC / 8) break;
        float f[8], g[8];
        if constexpr (!kModulationFirst) {
          factor[q] = load_weight(factors + word);
          offset[q] = load_weight(offsets + word);
        }
        widen8<T>(x[q], v);
        widen8<T>(factor[q], f);
        widen8<T>(offset[q], g);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = (v[i] - mean) * inverse;
        if (weight != nullptr) {
          float w[8], b[8];
          widen8<T>(*(reinterpret_cast<const uint4*>(weight) + word), w);
          widen8<T>(*(reinterpret_cast<const uint4*>(bias) + word), b);
#pragma unroll
          for (int i = 0; i < 8; ++i) v[i] = v[i] * w[i] + b[i];
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = v[i] * (1 + f[i]) + g[i];
        word_of(row, word) = narrow8<T>(v);
      }
    }
  }
  __device__ uint4& word_of(int row, int word) const {
    return *reinterpret_cast<uint4*>(&s.n[row][8 * word]);
  }
  __device__ static float warp_sum(float x) {
#pragma unroll
    for (int o = 16; o > 0; o /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, o);
    return x;
  }

  // Whether no thread of the block has given up; a barrier.
  __device__ bool all_here() const { return __syncthreads_or(exchange.gave_up()) == 0; }

  // This warp's part of s.n times 16 features of a weight, for tile `t` of the block.
  template <int kSteps, class Weight>
  __device__ void product(int t, Weight weight) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      if (8 * group >= p.rows) break;
      float sum[4] = {};
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        const T* b = &s.n[8 * group + lane / 4][16 * (kSteps * warp + k) + lane % 4 * 2];
        multiply(sum, weight(k), *reinterpret_cast<const uint32_t*>(b),
                 *reinterpret_cast<const uint32_t*>(b + 8));
      }
      s.partial[t][group][warp][lane] = make_float4(sum[0], sum[1], sum[2], sum[3]);
    }
  }
  __device__ static void multiply(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1) {
    const uint32_t words[4] = {a.x, a.y, a.z, a.w};
    mma_16x8x16<T>(sum, words, b0, b1);
  }
  // Features lane / 4 and 8 more of tokens lane % 4 * 2 and the next: (f, t), (f, t + 1), (f + 8,
  // t), (f + 8, t + 1).
  __device__ void reduce(int t, int group, float (&sum)[4]) const {
#pragma unroll
    for (int w = 0; w < kPatchWarps; ++w) {
      const float4 part = s.partial[t][group][w][lane];
      sum[0] += part.x;
      sum[1] += part.y;
      sum[2] += part.z;
      sum[3] += part.w;
    }
  }
  __device__ static float rounded(float x) { return to_float(from_float<T>(x)); }

  // h = silu(h1) h2, [h1 | h2] = n W1^T + b1. False if a block waited in vain.
  __device__ bool first_product(int layer, const T* projection) {
    if (warp == kPatchWarps - 1) {
      for (int i = lane; i < kPatchTiles * p.rows; i += 32) {
        if (tile_of(i / p.rows) < kTiles1) exchange.wipe(i % p.rows, tile_of(i / p.rows));
      }
      exchange.fence();
    }
    const int t = warp / kGroups, group = warp % kGroups, tile = tile_of(t);
    const bool reduces = t < kPatchTiles && tile < kTiles1 && 8 * group < p.rows;
    float bias1 = 0, bias2 = 0;
    if (reduces) {
      const T* bias = static_cast<const T*>(p.bias1) + layer * 2 * kH + 8 * tile + lane / 4;
      bias1 = to_float(bias[0]);
      bias2 = to_float(bias[kH]);
    }
    const T* weight = static_cast<const T*>(p.norm_weight) + layer * kC;
    const T* bias = static_cast<const T*>(p.norm_bias) + layer * kC;
    if (layer == 0) {
      norm<true>(projection, projection + kC, weight, bias);
    } else {
      norm<false>(projection, projection + kC, weight, bias);
    }
    if (!all_here()) return false;
#pragma unroll
    for (int i = 0; i < kPatchTiles; ++i) {
      if (tile_of(i) < kTiles1) product<kSteps1>(i, [&](int k) { return first[i][k]; });
    }
    __syncthreads();
    if (reduces) {
      float sum[4] = {};
      reduce(t, group, sum);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float h1 = rounded(sum[e] + bias1), h2 = rounded(sum[2 + e] + bias2);
        s.hidden[t][8 * group + lane % 4 * 2 + e][lane / 4] =
            from_float<T>(h1 / (1 + __expf(-h1)) * h2);
      }
      __syncwarp();
      const int row = 8 * group + lane;
      if (lane < 8 && row < p.rows) {
        exchange.write(row, tile, *reinterpret_cast<const uint4*>(s.hidden[t][row]));
      }
    }
    exchange.next_stage();
    return true;
  }

  // stream += gate (h W2^T + b2). False if a block waited in vain.
  __device__ bool second_product(int layer, const T* gates) {
    const int tile = blockIdx.x;
    if (tile < kTiles2) {
      if (warp == kPatchWarps - 1) {
        for (int i = lane; i < 2 * p.rows; i += 32) exchange.wipe(i / 2, 2 * tile + i % 2);
        exchange.fence();
      }
      const int group = warp, feature = 16 * tile + lane / 4;
      const bool reduces = group < kGroups && 8 * group < p.rows;
      float bias[2] = {}, gate[2][2] = {};
      if (reduces) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          bias[i] = to_float(static_cast<const T*>(p.bias2)[layer * kC + feature + 8 * i]);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int row = 8 * group + lane % 4 * 2 + e;
            if (row < p.rows) gate[i][e] = to_float(gates[row * p.width + feature + 8 * i]);
          }
        }
      }
      gather();
      if (!all_here()) return false;
      product<kSteps2>(0, [&](int k) { return second[k]; });
      __syncthreads();
      if (reduces) {
        float sum[4] = {};
        reduce(0, group, sum);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            T& value = s.stream[8 * group + lane % 4 * 2 + e][lane / 4 + 8 * i];
            value = from_float<T>(to_float(value) + gate[i][e] * rounded(sum[2 * i + e] + bias[i]));
          }
        }
        __syncwarp();
        const int row = 8 * group + lane / 2;
        if (lane < 16 && row < p.rows) {
          const T* values = &s.stream[row][lane % 2 * 8];
          exchange.write(row, 2 * tile + lane % 2, *reinterpret_cast<const uint4*>(values));
        }
      }
    }
    exchange.next_stage();
    return true;
  }
  // Hidden rows of all blocks into s.n.
  __device__ void gather() {
    constexpr int kRowWords = kH / 8, kAtOnce = 4;
    const int words = p.rows * kRowWords;
    for (int begin = threadIdx.x; begin < words; begin += kAtOnce * kPatchThreads) {
      uint4 seen[kAtOnce];
#pragma unroll
      for (int q = 0; q < kAtOnce; ++q) {
        const int i = begin + q * kPatchThreads;
        if (i < words) seen[q] = exchange.look(i / kRowWords, i % kRowWords);
      }
#pragma unroll
      for (int q = 0; q < kAtOnce; ++q) {
        const int i = begin + q * kPatchThreads;
        if (i >= words) break;
        exchange.wait(i / kRowWords, i % kRowWords, seen[q]);
        word_of(i / kRowWords, i % kRowWords) = seen[q];
      }
    }
  }

  // Prediction, guidance and the sampler's step, of all tokens. False if a block waited in vain.
  __device__ bool step(int evaluation, const T* modulation) {
    const int token = threadIdx.x / (kPatchBits / 4), bit = threadIdx.x % (kPatchBits / 4) * 4;
    static_assert(kPatchMaxRows * kPatchBits == 4 * kPatchThreads, "a thread takes four bits");
    float eps[4] = {};
    if (token < p.tokens) draw(evaluation, token, bit, eps);  // before the other blocks are awaited
    norm<false>(modulation, modulation + kC, nullptr, nullptr);
    if (!all_here()) return false;
    const uint4* weight = out + kSteps1 * warp * 32 + lane;
#pragma unroll
    for (int t = 0; t < kPatchBits / 16; ++t) {
      product<kSteps1>(t, [&](int k) { return weight[(t * kC / 16 + k) * 32]; });
    }
    __syncthreads();
    const int t = warp / kGroups, group = warp % kGroups;
    if (t < kPatchBits / 16 && 8 * group < p.rows) {
      float sum[4] = {};
      reduce(t, group, sum);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int feature = 16 * t + lane / 4 + 8 * i;
        const float bias = to_float(static_cast<const T*>(p.out_bias)[feature]);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float x0 = rounded(sum[2 * i + e] + bias);
          if (p.squash) x0 = rounded(2 / (1 + __expf(-x0)) - 1);
          s.x0[8 * group + lane % 4 * 2 + e][feature] = x0;
        }
      }
    }
    __syncthreads();
    if (token < p.tokens) {
      const float a = p.table[3 * evaluation], b = p.table[3 * evaluation + 1];
      const float c = p.table[3 * evaluation + 2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float x0 = s.x0[token][bit + i];
        if (p.cfg != nullptr) x0 = guide(x0, s.x0[token + p.tokens][bit + i], *p.cfg);
        float& state = s.state[token][bit + i];
        state = fmaf(c, eps[i], fmaf(b, x0, a * state));
      }
    }
    __syncthreads();
    return true;
  }
  __device__ void draw(int evaluation, int token, int bit, float (&eps)[4]) const {
    if (p.noise != nullptr) {
      const int64_t first = (int64_t{evaluation} * p.tokens + token) * kPatchBits + bit;
#pragma unroll
      for (int i = 0; i < 4; ++i) eps[i] = p.noise[first + i];
      return;
    }
    const NoiseKey key = noise_key(p.keys + 3 * (token / p.patch));
    const uint32_t block = (token % p.patch * kPatchBits + bit) / 4;
    noise_block(noise_words(key, block, static_cast<uint32_t>(evaluation) + 1), eps);
  }
};

template <class T, int kC, int kH, int kRows>
__global__ void __launch_bounds__(kPatchThreads)
    denoise_patch_kernel(const DenoisePatchParams params) {
  BDK_SHARED_BYTES(memory);
  DenoisePatch<T, kC, kH, kRows> head(params, memory);
  head.run();
}

}  // namespace bdk
