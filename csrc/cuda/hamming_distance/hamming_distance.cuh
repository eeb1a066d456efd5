// Device code of hamming_distance and nearest_codes: XOR and popcount.
#pragma once

#include <stdint.h>

#include "cuda/hamming_distance/hamming_distance_config.h"

namespace bdk {

struct CodesParams {
  const uint8_t* a;  // [queries, width], one row every a_stride bytes
  const uint8_t* b;  // [codes, width]
  int64_t queries, codes;
  int64_t a_stride, b_stride;
  int width;  // bytes
};

// Word `w` of a code; bytes past its end are 0. kWords: the code may be read by 32-bit words.
template <bool kWords>
__device__ inline uint32_t load_word(const uint8_t* code, int w, int width) {
  if constexpr (kWords) {
    return __ldg(reinterpret_cast<const uint32_t*>(code) + w);
  } else {
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (4 * w + i < width) word |= static_cast<uint32_t>(code[4 * w + i]) << (8 * i);
    }
    return word;
  }
}

// Words first .. first + kHammingWords - 1 of kHammingTile codes, zeros where there are none.
template <bool kWords>
__device__ inline void load_tile(uint32_t (*tile)[kHammingWords + 1], const uint8_t* codes,
                                 int64_t stride, int64_t begin, int64_t count, int first,
                                 int width) {
  const int words = (width + 3) / 4;
  for (int i = threadIdx.x; i < kHammingTile * kHammingWords; i += 32 * kHammingWarps) {
    const int row = i / kHammingWords;
    const int w = first + i % kHammingWords;
    const bool inside = begin + row < count && w < words;
    tile[row][i % kHammingWords] =
        inside ? load_word<kWords>(codes + (begin + row) * stride, w, width) : 0u;
  }
}

template <bool kWords>
__global__ void __launch_bounds__(32 * kHammingWarps)
    hamming_distance_kernel(const CodesParams params, int32_t* distance) {
  constexpr int kRows = kHammingTile / kHammingWarps;
  constexpr int kColumns = kHammingTile / 32;
  __shared__ uint32_t a[kHammingTile][kHammingWords + 1];  // one more: no two lanes in one bank
  __shared__ uint32_t b[kHammingTile][kHammingWords + 1];
  const int64_t tiles = (params.codes + kHammingTile - 1) / kHammingTile;
  const int64_t row0 = blockIdx.x / tiles * kHammingTile;
  const int64_t column0 = blockIdx.x % tiles * kHammingTile;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  int32_t sums[kRows][kColumns] = {};
  const int words = (params.width + 3) / 4;
  for (int first = 0; first < words; first += kHammingWords) {
    load_tile<kWords>(a, params.a, params.a_stride, row0, params.queries, first, params.width);
    load_tile<kWords>(b, params.b, params.b_stride, column0, params.codes, first, params.width);
    __syncthreads();
    const int some = words - first < kHammingWords ? words - first : kHammingWords;
    for (int w = 0; w < some; ++w) {
      uint32_t word[kColumns];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) word[j] = b[lane + 32 * j][w];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const uint32_t query = a[warp * kRows + i][w];
#pragma unroll
        for (int j = 0; j < kColumns; ++j) sums[i][j] += __popc(query ^ word[j]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = row0 + warp * kRows + i;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int64_t column = column0 + lane + 32 * j;
      if (row < params.queries && column < params.codes) {
        distance[row * params.codes + column] = sums[i][j];
      }
    }
  }
}

// `query` is in shared memory.
template <bool kWords>
__device__ inline int distance_to(const uint32_t* query, const uint8_t* code, int width) {
  const int words = (width + 3) / 4;
  int sum = 0;
#pragma unroll 4
  for (int w = 0; w < words; ++w) sum += __popc(query[w] ^ load_word<kWords>(code, w, width));
  return sum;
}

// Bytes of shared memory of one warp of nearest_codes_kernel.
__host__ __device__ inline int nearest_shared(int width) {
  return 4 * (8 * width + 1 + (width + 3) / 4);
}

// A warp finds the k nearest of one query by a counting sort: it makes the histogram of all
// distances, turns it into the first output place of each distance, and goes through the codes once
// more, in order of their index, to write those that are near enough to their places.
template <bool kWords>
__global__ void __launch_bounds__(32 * kNearestWarps)
    nearest_codes_kernel(const CodesParams params, int64_t k, int64_t* index, int32_t* distance) {
  extern __shared__ uint32_t shared[];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t{blockIdx.x} * (blockDim.x / 32) + warp;
  if (row >= params.queries) return;  // warps share nothing
  const int bins = 8 * params.width + 1;
  const int words = (params.width + 3) / 4;
  uint32_t* query = shared + warp * (nearest_shared(params.width) / 4);
  uint32_t* places = query + words;
  for (int w = lane; w < words; w += 32) {
    query[w] = load_word<kWords>(params.a + row * params.a_stride, w, params.width);
  }
  for (int d = lane; d < bins; d += 32) places[d] = 0;
  __syncwarp();

  for (int64_t m = lane; m < params.codes; m += 32) {
    const int d = distance_to<kWords>(query, params.b + m * params.b_stride, params.width);
    atomicAdd(places + d, 1u);
  }
  __syncwarp();

  uint32_t before = 0;  // codes nearer than the current bins
  int farthest = -1;    // the largest distance among the k nearest
  for (int first = 0; first < bins && farthest < 0; first += 32) {
    const int d = first + lane;
    const uint32_t count = d < bins ? places[d] : 0;
    uint32_t through = count;  // inclusive sum over the lanes
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const uint32_t below = __shfl_up_sync(0xFFFFFFFFu, through, step);
      if (lane >= step) through += below;
    }
    if (d < bins) places[d] = before + through - count;
    const uint32_t enough = __ballot_sync(0xFFFFFFFFu, before + through >= k);
    if (enough != 0) farthest = first + __ffs(enough) - 1;
    before += __shfl_sync(0xFFFFFFFFu, through, 31);
  }
  __syncwarp();

  const int64_t ends = (params.codes + 31) / 32 * 32;  // every lane takes part to the end
  for (int64_t m = lane; m < ends; m += 32) {
    int d = bins;
    if (m < params.codes) {
      d = distance_to<kWords>(query, params.b + m * params.b_stride, params.width);
    }
    const uint32_t near = __ballot_sync(0xFFFFFFFFu, d <= farthest);
    if (d <= farthest) {
      const uint32_t equals = __match_any_sync(near, d);
      const uint32_t earlier = equals & ((1u << lane) - 1u);
      const uint32_t start = places[d];
      __syncwarp(near);
      if (earlier == 0) places[d] = start + __popc(equals);
      const int64_t place = int64_t{start} + __popc(earlier);
      if (place < k) {
        index[row * k + place] = m;
        distance[row * k + place] = d;
      }
    }
    __syncwarp();
  }
}

}  // namespace bdk
