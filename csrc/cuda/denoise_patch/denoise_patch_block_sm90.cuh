// What a thread block of denoise_patch does in every stage: fetch its weights, gather or normalise
// the rows of the other blocks, multiply them, add the parts of its warps.
#pragma once

#include <stdint.h>

#include "cuda/common/load_store.cuh"
#include "cuda/common/machine_sm90.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/denoise_patch/denoise_patch_params_sm90.cuh"
#include "cuda/denoise_patch/exchange_sm90.cuh"

namespace bdk {

struct Word {
  int row, word;
};

template <class T, int kC, int kH, int kRows, bool kAttention>
struct DenoisePatchBlock {
  using Shared = DenoisePatchShared<T, kC, kH, kRows, kAttention>;
  static constexpr int kGroups = kRows / 8;
  // Channels of the widest rows that blocks exchange.
  static constexpr int kWidest = kAttention && 3 * kC > kH ? 3 * kC : kC > kH ? kC : kH;

  const DenoisePatchParams& p;
  Shared& s;
  Exchange<kAttention> exchange;
  const int warp, lane;

  __device__ DenoisePatchBlock(const DenoisePatchParams& params, Shared& shared)
      : p(params),
        s(shared),
        exchange(params.words, params.rows, kWidest / 8, params.max_polls),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32) {}

  // Tile `t` of this block.
  __device__ static int tile_of(int t) { return blockIdx.x + t * gridDim.x; }

  // This warp's share of a tile.
  template <int kSteps>
  __device__ void fetch(uint4* to, const uint4* weight, int tile, int tiles) const {
    if (tile >= tiles) return;
    weight += (int64_t{tile} * kPatchWarps + warp) * kSteps * 32 + lane;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) to[k] = load_weight(weight + 32 * k);
  }

  // The modulated norm of the stream into s.n, a row at a time by each warp. The stream lies there
  // already (`kLocal`), or comes from the other blocks.
  template <bool kLocal>
  __device__ void norm(const T* scale, const T* shift, const T* weight, const T* bias) {
    constexpr int kWords = (kC / 8 + 31) / 32;
    // Whether there are registers for a row's modulation while the weights of two products wait.
    constexpr bool kModulationFirst = kC <= 1024;
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

  // Words of the stage before into s.n: word i of `words` from (row, word) = from(i) to to(i).
  template <class From, class To>
  __device__ void gather(int words, From from, To to) {
    constexpr int kAtOnce = kC <= 1024 ? 4 : 2;  // as there are registers
    for (int begin = threadIdx.x; begin < words; begin += kAtOnce * kPatchThreads) {
      uint4 seen[kAtOnce];
#pragma unroll
      for (int q = 0; q < kAtOnce; ++q) {
        const int i = begin + q * kPatchThreads;
        if (i < words) seen[q] = exchange.look(from(i).row, from(i).word);
      }
#pragma unroll
      for (int q = 0; q < kAtOnce; ++q) {
        const int i = begin + q * kPatchThreads;
        if (i >= words) break;
        exchange.wait(from(i).row, from(i).word, seen[q]);
        word_of(to(i).row, to(i).word) = seen[q];
      }
    }
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
};

}  // namespace bdk
