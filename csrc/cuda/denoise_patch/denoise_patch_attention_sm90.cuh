// Stage of denoise_patch: the attention of a layer, a head of a patch at a time.
#pragma once

#include <stdint.h>

#include "cuda/common/mma.cuh"
#include "cuda/denoise_patch/denoise_patch_block_sm90.cuh"

namespace bdk {

// The queries, keys and values of a head are in columns 0, 64 and 128 of s.n, a token a row. Each
// warp computes all scores, which is little work, and 8 columns of the result.
template <class T, int kC, int kH, int kRows>
class DenoisePatchAttention {
 public:
  using Block = DenoisePatchBlock<T, kC, kH, kRows, true>;
  static constexpr int kHeads = kC / kPatchHeadDim;

  __device__ explicit DenoisePatchAttention(Block& of) : block(of), tokens(of.p.patch) {}

  // False if a block waited in vain.
  __device__ bool run() {
    const int tasks = block.p.rows / tokens * kHeads;
    if (block.warp == kPatchWarps - 1) {
      for (int task = blockIdx.x; task < tasks; task += gridDim.x) {
        for (int i = block.lane; i < tokens * kWords; i += 32) {
          block.exchange.wipe(first_row(task) + i / kWords, first_word(task) + i % kWords);
        }
      }
      block.exchange.fence();
    }
    for (int task = blockIdx.x; task < tasks; task += gridDim.x) {
      block.gather(
          3 * kWords * tokens,
          [&](int i) {
            const int part = i % (3 * kWords) / kWords;  // queries, keys, values
            return Word{first_row(task) + i / (3 * kWords),
                        part * (kC / 8) + first_word(task) + i % kWords};
          },
          [&](int i) { return Word{i / (3 * kWords), i % (3 * kWords)}; });
      if (!block.all_here()) return false;
      attend(first_row(task), first_word(task));
      __syncthreads();  // s.n is free again
    }
    block.exchange.next_stage();
    return true;
  }

 private:
  static constexpr int kWords = kPatchHeadDim / 8;
  static_assert(kWords == kPatchWarps, "a warp has a word of every token");

  Block& block;
  const int tokens;

  __device__ int first_row(int task) const { return task / kHeads * tokens; }
  __device__ static int first_word(int task) { return task % kHeads * kWords; }

  // Two adjacent values of a token, zeros of those that are not there.
  __device__ uint32_t pair(int token, int column) const {
    return token < tokens ? *reinterpret_cast<const uint32_t*>(&block.s.n[token][column]) : 0;
  }
  // A value of two adjacent tokens.
  __device__ uint32_t pair_of_tokens(int token, int column) const {
    const auto value = [&](int t) { return t < tokens ? to_float(block.s.n[t][column]) : 0; };
    return pack_pair<T>(value(token), value(token + 1));
  }

  __device__ void attend(int row, int word) const {
    const int i = block.lane / 4, j = block.lane % 4 * 2;
    float p[2][4] = {};  // (i, 8 n + j), (i, 8 n + j + 1), (i + 8, ..), (i + 8, ..)
#pragma unroll
    for (int k = 0; k < kPatchHeadDim; k += 16) {
      const uint32_t q[4] = {pair(i, k + j), pair(i + 8, k + j), pair(i, k + j + 8),
                             pair(i + 8, k + j + 8)};
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int column = kPatchHeadDim + k + j;
        mma_16x8x16<T>(p[n], q, pair(8 * n + i, column), pair(8 * n + i, column + 8));
      }
    }
    float sums[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) sums[half] = exponentials(p, half, j);
    // Exponentials as the sums of two 16-bit values, so that they lose nothing that matters.
    uint32_t high[4], low[4];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float (&of)[4] = p[n];
        const float a = of[2 * half], b = of[2 * half + 1];
        high[2 * n + half] = pack_pair<T>(a, b);
        low[2 * n + half] = pack_pair<T>(a - Block::rounded(a), b - Block::rounded(b));
      }
    }
    const int column = 2 * kPatchHeadDim + 8 * block.warp + i;
    const uint32_t v0 = pair_of_tokens(j, column), v1 = pair_of_tokens(j + 8, column);
    float y[4] = {};
    mma_16x8x16<T>(y, high, v0, v1);
    mma_16x8x16<T>(y, low, v0, v1);
    const uint32_t upper = pack_pair<T>(y[0] / sums[0], y[1] / sums[0]);
    const uint32_t lower = pack_pair<T>(y[2] / sums[1], y[3] / sums[1]);
    uint32_t words[4];  // lane t collects the 8 values of token t
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int from = block.lane % 8 * 4 + q;
      const uint32_t of_upper = __shfl_sync(0xFFFFFFFFu, upper, from);
      const uint32_t of_lower = __shfl_sync(0xFFFFFFFFu, lower, from);
      words[q] = block.lane < 8 ? of_upper : of_lower;
    }
    if (block.lane < tokens) {
      block.exchange.write(row + block.lane, word + block.warp,
                           make_uint4(words[0], words[1], words[2], words[3]));
    }
  }

  // Turns the scores of token i + 8 half into exponentials, and returns their sum.
  __device__ float exponentials(float (&p)[2][4], int half, int j) const {
    constexpr float kScale = 0.125f * 1.44269504f;  // 1 / sqrt(64), for powers of 2
    static_assert(kPatchHeadDim == 64, "kScale is of 64");
    float highest = -INFINITY, sum = 0;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (8 * n + j + e < tokens) highest = fmaxf(highest, p[n][2 * half + e]);
      }
    }
    highest = quad_max(highest);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& value = p[n][2 * half + e];
        value = 8 * n + j + e < tokens ? exp2f((value - highest) * kScale) : 0;
        sum += value;
      }
    }
    return quad_sum(sum);
  }
};

}  // namespace bdk
