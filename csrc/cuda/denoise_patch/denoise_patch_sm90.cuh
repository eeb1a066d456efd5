// Device code of denoise_patch: all evaluations of a head of modulated SwiGLU blocks, with
// attention before each or without, and the sampler's steps between them, in one launch of as many
// blocks as run at once.
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
#include "cuda/denoise_patch/denoise_patch_attention_sm90.cuh"
#include "cuda/denoise_patch/denoise_patch_block_sm90.cuh"

namespace bdk {

template <class T, int kC, int kH, int kRows, bool kAttention>
class DenoisePatch {
 public:
  using Shared = DenoisePatchShared<T, kC, kH, kRows, kAttention>;
  using Resident = DenoisePatchResident<kC>;
  using Block = DenoisePatchBlock<T, kC, kH, kRows, kAttention>;
  static constexpr bool kResident = sizeof(Shared) + sizeof(Resident) <= kPatchSharedLimit;
  static constexpr int kSharedBytes = sizeof(Shared) + (kResident ? sizeof(Resident) : 0);
  static_assert(kSharedBytes <= kPatchSharedLimit, "does not fit a multiprocessor");
  static_assert(kC % 128 == 0 && kH % 128 == 0 && kC <= kH, "8 warps take 16 channels at a time");

  __device__ DenoisePatch(const DenoisePatchParams& params, unsigned char* memory)
      : p(params),
        s(*reinterpret_cast<Shared*>(memory)),
        in(params.in_weight),
        out(params.out_weight),
        block(params, s),
        warp(block.warp),
        lane(block.lane) {
    if constexpr (kResident) {
      Resident& resident = *reinterpret_cast<Resident*>(memory + sizeof(Shared));
      in = copied(&resident.in[0][0][0], params.in_weight);
      out = copied(&resident.out[0][0][0], params.out_weight);
    }
  }

  __device__ void run() {
    const bool done = evaluate_all();
    if (block.exchange.gave_up()) *p.status = 1;
    if (blockIdx.x != 0) return;
    for (int i = threadIdx.x; i < p.tokens * kPatchBits; i += kPatchThreads) {
      p.y[i] = done ? s.state[i / kPatchBits][i % kPatchBits] : __uint_as_float(0x7FFFFFFFu);
    }
  }

 private:
  static constexpr int kGroups = kRows / 8, kWeights = kC / 16 * (kPatchBits / 16) * 32;
  // Tiles of the products: qkv, w1, and wo as w2.
  static constexpr int kTilesQkv = 3 * kC / 16, kTiles1 = 2 * kH / 16, kTiles2 = kC / 16;
  // A warp's steps of 16 channels.
  static constexpr int kSteps1 = kC / 16 / kPatchWarps, kSteps2 = kH / 16 / kPatchWarps;

  const DenoisePatchParams& p;
  Shared& s;
  const uint4 *in, *out;
  Block block;
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
    fetch_layer(0);
    __syncthreads();
    for (int i = 0; i < p.evaluations; ++i) {
      const T* modulation = static_cast<const T*>(p.modulation) + int64_t{i} * p.rows * p.width;
      project();
      for (int layer = 0; layer < p.layers; ++layer) {
        const int projection = layer * p.projections / p.layers;
        if (!evaluate(layer, modulation + projection * (kAttention ? 6 : 3) * kC)) return false;
      }
      if (!step(i, modulation + p.width - 2 * kC)) return false;
    }
    return true;
  }

  // A layer. False if a block waited in vain, as of all that follows.
  __device__ bool evaluate(int layer, const T* projection) {
    if constexpr (kAttention) {
      fetch_second<kSteps1>(p.wo_weight, layer);
      const Vectors of_norm = {p.attention_norm_weight, p.attention_norm_bias};
      if (!first_product<false>(layer, projection, of_norm, p.qkv_bias, layer == 0)) return false;
      fetch_first(p.weight1, kTiles1, layer);
      if (!DenoisePatchAttention<T, kC, kH, kRows>(block).run()) return false;
      if (!second_product<kSteps1>(layer, projection + 2 * kC, p.wo_bias)) return false;
      projection += 3 * kC;
    }
    fetch_second<kSteps2>(p.weight2, layer);
    const bool local = !kAttention && layer == 0;
    const Vectors of_norm = {p.norm_weight, p.norm_bias};
    if (!first_product<true>(layer, projection, of_norm, p.bias1, local)) return false;
    fetch_layer(layer + 1 < p.layers ? layer + 1 : 0);
    return second_product<kSteps2>(layer, projection + 2 * kC, p.bias2);
  }

  struct Vectors {
    const void *weight, *bias;  // [L, C]
  };

  // Weights that the first product of a layer begins with.
  __device__ void fetch_layer(int layer) {
    fetch_first(kAttention ? p.qkv_weight : p.weight1, kAttention ? kTilesQkv : kTiles1, layer);
  }

  template <int kSteps>
  __device__ static constexpr int64_t words_of(int tiles) {  // of a layer's weight
    return int64_t{tiles} * kPatchWarps * kSteps * 32;
  }
  __device__ void fetch_first(const uint4* weights, int tiles, int layer) {
    weights += layer * words_of<kSteps1>(tiles);
#pragma unroll
    for (int t = 0; t < kPatchTiles; ++t)
      block.template fetch<kSteps1>(first[t], weights, block.tile_of(t), tiles);
  }
  template <int kSteps>
  __device__ void fetch_second(const uint4* weights, int layer) {
    weights += layer * words_of<kSteps>(kTiles2);
    block.template fetch<kSteps>(second, weights, blockIdx.x, kTiles2);
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
          block.multiply(sum, a[k], pack_pair<T>(state[0], state[1]),
                         pack_pair<T>(state[8], state[9]));
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

  // Tiles of the next rows: silu(h1) h2 with [h1 | h2] = n W1^T + b1 (`kSwiglu`), or n Wqkv^T + b.
  template <bool kSwiglu>
  __device__ bool first_product(int layer, const T* projection, const Vectors& of_norm,
                                const void* biases, bool local) {
    constexpr int kTiles = kSwiglu ? kTiles1 : kTilesQkv;
    constexpr int kWords = kSwiglu ? 1 : 2;  // of a tile
    if (warp == kPatchWarps - 1) {
      for (int i = lane; i < kPatchTiles * kWords * p.rows; i += 32) {
        const int tile = block.tile_of(i / (kWords * p.rows)), word = i % kWords;
        if (tile < kTiles) block.exchange.wipe(i / kWords % p.rows, kWords * tile + word);
      }
      block.exchange.fence();
    }
    const int t = warp / kGroups, group = warp % kGroups, tile = block.tile_of(t);
    const bool reduces = t < kPatchTiles && tile < kTiles && 8 * group < p.rows;
    float bias1 = 0, bias2 = 0;  // of features lane / 4 and 8 more of the tile, as it is packed
    if (reduces) {
      const T* bias = static_cast<const T*>(biases) + layer * kTiles * 16 +
                      (kSwiglu ? 8 : 16) * tile + lane / 4;
      bias1 = to_float(bias[0]);
      bias2 = to_float(bias[kSwiglu ? kH : 8]);
    }
    const T* weight = static_cast<const T*>(of_norm.weight) + layer * kC;
    const T* bias = static_cast<const T*>(of_norm.bias) + layer * kC;
    if (local) {
      block.template norm<true>(projection, projection + kC, weight, bias);
    } else {
      block.template norm<false>(projection, projection + kC, weight, bias);
    }
    if (!block.all_here()) return false;
#pragma unroll
    for (int i = 0; i < kPatchTiles; ++i) {
      if (block.tile_of(i) >= kTiles) continue;
      block.template product<kSteps1>(i, [&](int k) { return first[i][k]; });
    }
    __syncthreads();
    if (reduces) {
      float sum[4] = {};
      block.reduce(t, group, sum);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float h1 = block.rounded(sum[e] + bias1), h2 = block.rounded(sum[2 + e] + bias2);
        T* result = s.results[t][8 * group + lane % 4 * 2 + e] + lane / 4;
        if constexpr (kSwiglu) {
          result[0] = from_float<T>(h1 / (1 + __expf(-h1)) * h2);
        } else {
          result[0] = from_float<T>(h1);
          result[8] = from_float<T>(h2);
        }
      }
      __syncwarp();
      const int row = 8 * group + lane / kWords, word = lane % kWords;
      if (lane < 8 * kWords && row < p.rows) {
        const T* values = &s.results[t][row][8 * word];
        block.exchange.write(row, kWords * tile + word, *reinterpret_cast<const uint4*>(values));
      }
    }
    block.exchange.next_stage();
    return true;
  }

  // stream += gate (h W^T + b), with 16 kPatchWarps kSteps channels of h.
  template <int kSteps>
  __device__ bool second_product(int layer, const T* gates, const void* biases) {
    const int tile = blockIdx.x;
    if (tile < kTiles2) {
      if (warp == kPatchWarps - 1) {
        for (int i = lane; i < 2 * p.rows; i += 32) block.exchange.wipe(i / 2, 2 * tile + i % 2);
        block.exchange.fence();
      }
      const int group = warp, feature = 16 * tile + lane / 4;
      const bool reduces = group < kGroups && 8 * group < p.rows;
      float bias[2] = {}, gate[2][2] = {};
      if (reduces) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          bias[i] = to_float(static_cast<const T*>(biases)[layer * kC + feature + 8 * i]);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int row = 8 * group + lane % 4 * 2 + e;
            if (row < p.rows) gate[i][e] = to_float(gates[row * p.width + feature + 8 * i]);
          }
        }
      }
      constexpr int kWords = 2 * kPatchWarps * kSteps;
      const auto same = [](int i) { return Word{i / kWords, i % kWords}; };
      block.gather(p.rows * kWords, same, same);
      if (!block.all_here()) return false;
      block.template product<kSteps>(0, [&](int k) { return second[k]; });
      __syncthreads();
      if (reduces) {
        float sum[4] = {};
        block.reduce(0, group, sum);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            T& value = s.stream[8 * group + lane % 4 * 2 + e][lane / 4 + 8 * i];
            const float y = block.rounded(sum[2 * i + e] + bias[i]);
            value = from_float<T>(to_float(value) + gate[i][e] * y);
          }
        }
        __syncwarp();
        const int row = 8 * group + lane / 2;
        if (lane < 16 && row < p.rows) {
          const T* values = &s.stream[row][lane % 2 * 8];
          block.exchange.write(row, 2 * tile + lane % 2, *reinterpret_cast<const uint4*>(values));
        }
      }
    }
    block.exchange.next_stage();
    return true;
  }

  // Prediction, guidance and the sampler's step, of all tokens.
  __device__ bool step(int evaluation, const T* modulation) {
    const int token = threadIdx.x / (kPatchBits / 4), bit = threadIdx.x % (kPatchBits / 4) * 4;
    static_assert(kPatchMaxRows * kPatchBits == 4 * kPatchThreads, "a thread takes four bits");
    float eps[4] = {};
    if (token < p.tokens) draw(evaluation, token, bit, eps);  // before the other blocks are awaited
    block.template norm<false>(modulation, modulation + kC, nullptr, nullptr);
    if (!block.all_here()) return false;
    const uint4* weight = out + kSteps1 * warp * 32 + lane;
#pragma unroll
    for (int t = 0; t < kPatchBits / 16; ++t) {
      block.template product<kSteps1>(t, [&](int k) { return weight[(t * kC / 16 + k) * 32]; });
    }
    __syncthreads();
    const int t = warp / kGroups, group = warp % kGroups;
    if (t < kPatchBits / 16 && 8 * group < p.rows) {
      float sum[4] = {};
      block.reduce(t, group, sum);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int feature = 16 * t + lane / 4 + 8 * i;
        const float bias = to_float(static_cast<const T*>(p.out_bias)[feature]);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float x0 = block.rounded(sum[2 * i + e] + bias);
          if (p.squash) x0 = block.rounded(2 / (1 + __expf(-x0)) - 1);
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

template <class T, int kC, int kH, int kRows, bool kAttention>
__global__ void __launch_bounds__(kPatchThreads)
    denoise_patch_kernel(const DenoisePatchParams params) {
  BDK_SHARED_BYTES(memory);
  DenoisePatch<T, kC, kH, kRows, kAttention> head(params, memory);
  head.run();
}

}  // namespace bdk
