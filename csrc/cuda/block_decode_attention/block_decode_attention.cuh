// Device code of block_decode_attention: split over the cache, then the parts are combined.
//
// The P tokens and the query heads of one key-value head are the rows of a matrix, in tiles of 16
// for the tensor cores. A block of four warps goes through its split tile by tile. With 16 rows or
// fewer all warps have the same rows and share the keys of a tile; with more each warp has rows of
// its own.
#pragma once

#include <math.h>

#include "common/attention_split.h"
#include "cuda/block_decode_attention/block_decode_attention_config.h"
#include "cuda/common/mma.cuh"

namespace bdk {

struct DecodeParams {
  const void* q;       // [batch, tokens, heads, head_dim]
  const void* k;       // [batch, cache_tokens, kv_heads, head_dim]
  const void* v;       // as k
  const int* lengths;  // [batch]
  void* out;           // as q, contiguous
  float* sums;         // [batch, tokens, heads, splits, head_dim], relative to 2^top
  float* top;          // [batch, tokens, heads, splits]: largest score, base 2
  float* total;        // the same: sum of the weights
  int64_t q_batch, q_token, q_head;
  int64_t k_batch, k_token, k_head;
  int64_t v_batch, v_token, v_head;
  int tokens, group, kv_heads, head_dim, cache_tokens, splits, row_tiles;
  float scale;  // times log2(e)
};

// Place of a query row: rows are p group + g.
struct DecodeRow {
  int64_t source;  // in q
  int64_t out;     // row of out
};

__device__ inline DecodeRow decode_row(const DecodeParams& params, int64_t batch, int kv_head,
                                       int row) {
  const int64_t token = row / params.group;
  const int64_t head = int64_t{kv_head} * params.group + row % params.group;
  const int64_t heads = int64_t{params.kv_heads} * params.group;
  return {batch * params.q_batch + token * params.q_token + head * params.q_head,
          (batch * params.tokens + token) * heads + head};
}

// Keys first .. first + kDecodeKeys - 1 of one head; zeros from `last` on and past head_dim, since
// unfilled rows of the cache may hold NaN.
template <class T, int kHeadDim>
__device__ inline void copy_tile(T* tile, const T* from, int64_t token_stride, int first, int last,
                                 int head_dim) {
  constexpr int kChunks = kHeadDim / 8;
#pragma unroll
  for (int i = threadIdx.x; i < kDecodeKeys * kChunks; i += kDecodeThreads) {
    const int key = i / kChunks;
    const int channel = i % kChunks * 8;
    const bool inside = first + key < last && channel < head_dim;
    const T* source = inside ? from + (first + key) * token_stride + channel : from;
    copy_async(tile + key * (kHeadDim + kDecodePad) + channel, source, inside);
  }
}

// A warp's 16 query rows, and its partial softmax over the keys so far. Values [0] and [1] belong
// to rows lane / 4 and lane / 4 + 8.
template <class T, int kHeadDim>
struct DecodeWarp {
  static constexpr int kRow = kHeadDim + kDecodePad;

  uint32_t q[kHeadDim / 16][4];
  float sums[kHeadDim / 8][4];
  float top[2], total[2];

  __device__ void start(const DecodeParams& params, int64_t batch, int kv_head, int row0) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      top[half] = -INFINITY;
      total[half] = 0.0f;
      const int row = row0 + lane / 4 + 8 * half;
      const bool real = row < params.tokens * params.group;
      const T* from = static_cast<const T*>(params.q) +
                      decode_row(params, batch, kv_head, real ? row : 0).source;
#pragma unroll
      for (int k = 0; k < kHeadDim / 8; ++k) {
        const int channel = 8 * k + lane % 4 * 2;
        const bool inside = real && channel < params.head_dim;
        q[k / 2][k % 2 * 2 + half] =
            inside ? *reinterpret_cast<const uint32_t*>(from + channel) : 0u;
      }
    }
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] = 0.0f;
    }
  }

  // kKeys keys from `first` on, of which those before `last` count; k and v point at the first.
  template <int kKeys>
  __device__ void attend(const T* k, const T* v, int first, int last, float scale) {
    const int lane = threadIdx.x % 32;
    float scores[kKeys / 8][4] = {};
    const T* k_rows = k + (lane % 8 + lane / 16 * 8) * kRow + lane / 8 % 2 * 8;
#pragma unroll
    for (int d = 0; d < kHeadDim / 16; ++d) {
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t b[4];
        load_matrices<false>(b, k_rows + 16 * n * kRow + 16 * d);
        mma_16x8x16<T>(scores[2 * n], q[d], b[0], b[1]);
        mma_16x8x16<T>(scores[2 * n + 1], q[d], b[2], b[3]);
      }
    }
    float highest[2] = {top[0], top[1]};
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool filled = first + 8 * n + lane % 4 * 2 + i % 2 < last;
        scores[n][i] = filled ? scores[n][i] * scale : -INFINITY;
        highest[i / 2] = fmaxf(highest[i / 2], scores[n][i]);
      }
    }
    float shift[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      highest[half] = quad_max(highest[half]);
      // A row that has seen nothing but -inf has weights 0, not exp(-inf + inf).
      shift[half] = highest[half] == -INFINITY ? 0.0f : highest[half];
      const float fade = exp2f(top[half] - shift[half]);
      top[half] = highest[half];
      total[half] *= fade;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        sums[n][2 * half] *= fade;
        sums[n][2 * half + 1] *= fade;
      }
    }
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[n][i] = exp2f(scores[n][i] - shift[i / 2]);
        total[i / 2] += scores[n][i];
      }
    }
    const T* v_rows = v + (lane % 8 + lane / 8 % 2 * 8) * kRow + lane / 16 * 8;
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      const float (&low)[4] = scores[2 * n];
      const float (&high)[4] = scores[2 * n + 1];
      const uint32_t weights[4] = {pack_pair<T>(low[0], low[1]), pack_pair<T>(low[2], low[3]),
                                   pack_pair<T>(high[0], high[1]), pack_pair<T>(high[2], high[3])};
#pragma unroll
      for (int d = 0; d < kHeadDim / 16; ++d) {
        uint32_t b[4];
        load_matrices<true>(b, v_rows + 16 * n * kRow + 16 * d);
        mma_16x8x16<T>(sums[2 * d], weights, b[0], b[1]);
        mma_16x8x16<T>(sums[2 * d + 1], weights, b[2], b[3]);
      }
    }
  }
};

// Writes channels `channel` and `channel + 1` of a query row: the result if there is one split,
// else the part of a split. Both channels exist or neither.
template <class T>
__device__ inline void write_pair(const DecodeParams& params, int64_t row, int split, int channel,
                                  float first, float second, float top, float total) {
  if (params.splits == 1) {
    const float factor = 1.0f / total;
    T* out = static_cast<T*>(params.out) + row * params.head_dim + channel;
    *reinterpret_cast<uint32_t*>(out) = pack_pair<T>(first * factor, second * factor);
    return;
  }
  const int64_t part = row * params.splits + split;
  float2* sums = reinterpret_cast<float2*>(params.sums + part * params.head_dim + channel);
  *sums = make_float2(first, second);
  if (channel == 0) {
    params.top[part] = top;
    params.total[part] = total;
  }
}

// Partial results of the warps of a block in shared memory, if all of them had the same rows.
template <int kHeadDim>
struct DecodeParts {
  float sums[kDecodeWarps][16][kHeadDim];
  float top[kDecodeWarps][16], total[kDecodeWarps][16];
};

template <int kHeadDim>
__device__ inline void merge_warps(const DecodeParts<kHeadDim>& parts, int row, int channel,
                                   float (&sums)[2], float& top, float& total) {
  top = -INFINITY;
#pragma unroll
  for (int w = 0; w < kDecodeWarps; ++w) top = fmaxf(top, parts.top[w][row]);
  const float shift = top == -INFINITY ? 0.0f : top;
  sums[0] = sums[1] = total = 0.0f;
#pragma unroll
  for (int w = 0; w < kDecodeWarps; ++w) {
    const float weight = exp2f(parts.top[w][row] - shift);
    sums[0] += weight * parts.sums[w][row][channel];
    sums[1] += weight * parts.sums[w][row][channel + 1];
    total += weight * parts.total[w][row];
  }
}

// What a block works on: a split of the keys of one head, for a tile of rows.
struct DecodeWork {
  int split, row_tile, kv_head;
  int64_t batch;
  int length;  // of the row's cache
  Split keys;  // of the split
};

// Splits are neighbours, so that a cluster may hold all of them.
__device__ inline DecodeWork decode_work(const DecodeParams& params) {
  DecodeWork work;
  work.split = blockIdx.x % params.splits;
  const unsigned int unit = blockIdx.x / params.splits;
  work.row_tile = unit % params.row_tiles;
  work.kv_head = unit / params.row_tiles % params.kv_heads;
  work.batch = unit / params.row_tiles / params.kv_heads;
  work.length = clamp_length(params.lengths[work.batch], params.cache_tokens);
  work.keys = split_of(work.split, work.length, params.splits, kDecodeKeys);
  return work;
}

// kRowWarps warps beside each other in rows, the others in keys: 1 or kDecodeWarps. kHeadDim is
// head_dim, or the next size that there is a kernel for. Calls write(row, channel, first, second,
// top, total) for channels `channel` and `channel + 1` of a row of the tile.
template <class T, int kHeadDim, int kRowWarps, class Write>
__device__ inline void decode_split(const DecodeParams& params, const DecodeWork& work,
                                    void* memory, Write write) {
  static_assert(kRowWarps == 1 || kRowWarps == kDecodeWarps);
  constexpr int kRow = kHeadDim + kDecodePad;
  constexpr int kTile = kDecodeKeys * kRow;
  constexpr int kWarpKeys = kDecodeKeys * kRowWarps / kDecodeWarps;
  T* tiles = static_cast<T*>(memory);  // [stages][k and v][keys][kRow]

  const Split keys = work.keys;
  const int64_t batch = work.batch;
  const int kv_head = work.kv_head;
  const T* k = static_cast<const T*>(params.k) + batch * params.k_batch + kv_head * params.k_head;
  const T* v = static_cast<const T*>(params.v) + batch * params.v_batch + kv_head * params.v_head;
  const auto copy = [&](int stage, int first) {
    T* tile = tiles + stage * 2 * kTile;
    copy_tile<T, kHeadDim>(tile, k, params.k_token, first, keys.last, params.head_dim);
    copy_tile<T, kHeadDim>(tile + kTile, v, params.v_token, first, keys.last, params.head_dim);
    commit_copies();
  };
  if (keys.first < keys.last) copy(0, keys.first);

  const int index = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int rows = params.tokens * params.group;
  const int tile_row0 = kRowWarps == 1 ? 0 : 16 * index;
  const int row0 = 16 * kRowWarps * work.row_tile + tile_row0;
  const int key0 = kRowWarps == 1 ? index * kWarpKeys : 0;
  DecodeWarp<T, kHeadDim> warp;
  warp.start(params, batch, kv_head, row0);
  int stage = 0;
  for (int first = keys.first; first < keys.last; first += kDecodeKeys, stage ^= 1) {
    const int64_t next = int64_t{first} + kDecodeKeys;
    if (next < keys.last) {
      copy(stage ^ 1, static_cast<int>(next));
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    if (row0 < rows && first + key0 < keys.last) {
      const T* tile = tiles + stage * 2 * kTile + key0 * kRow;
      warp.template attend<kWarpKeys>(tile, tile + kTile, first + key0, keys.last, params.scale);
    }
    __syncthreads();  // before the next tile but one overwrites this one
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) warp.total[half] = quad_sum(warp.total[half]);

  if constexpr (kRowWarps == 1) {
    auto& parts = *static_cast<DecodeParts<kHeadDim>*>(memory);
    static_assert(sizeof(parts) <= kDecodeShared<kHeadDim>);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + 8 * half;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        float* sums = &parts.sums[index][row][8 * n + lane % 4 * 2];
        sums[0] = warp.sums[n][2 * half];
        sums[1] = warp.sums[n][2 * half + 1];
      }
      if (lane % 4 == 0) {
        parts.top[index][row] = warp.top[half];
        parts.total[index][row] = warp.total[half];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * kHeadDim / 2; i += kDecodeThreads) {
      const int row = i / (kHeadDim / 2);
      const int channel = i % (kHeadDim / 2) * 2;
      if (row0 + row >= rows || channel >= params.head_dim) continue;
      float sums[2], top, total;
      merge_warps(parts, row, channel, sums, top, total);
      write(row, channel, sums[0], sums[1], top, total);
    }
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + 8 * half;
      if (row0 + row >= rows) continue;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        const int channel = 8 * n + lane % 4 * 2;
        if (channel < params.head_dim) {
          write(tile_row0 + row, channel, warp.sums[n][2 * half], warp.sums[n][2 * half + 1],
                warp.top[half], warp.total[half]);
        }
      }
    }
  }
}

// The row of `out` of a row of the tile.
template <int kRowWarps>
__device__ inline int64_t out_row(const DecodeParams& params, const DecodeWork& work, int row) {
  const int first = 16 * kRowWarps * work.row_tile;
  return decode_row(params, work.batch, work.kv_head, first + row).out;
}

template <class T, int kHeadDim, int kRowWarps>
__global__ void __launch_bounds__(kDecodeThreads, kDecodeBlocks<kRowWarps>)
    decode_kernel(const DecodeParams params) {
  extern __shared__ uint4 decode_memory[];
  const DecodeWork work = decode_work(params);
  if (params.splits > 1 && work.keys.first >= work.keys.last) return;  // combine_kernel skips it
  decode_split<T, kHeadDim, kRowWarps>(
      params, work, decode_memory,
      [&](int row, int channel, float first, float second, float top, float total) {
        write_pair<T>(params, out_row<kRowWarps>(params, work, row), work.split, channel, first,
                      second, top, work.length == 0 ? 1.0f : total);
      });
}

// A warp sums the parts of one query of one head. A lane holds the weights of two splits.
template <class T>
__global__ void __launch_bounds__(kDecodeThreads)
    combine_kernel(const DecodeParams params, int64_t rows, int rows_per_batch) {
  static_assert(kDecodeMaxSplits == 64);
  const int64_t row = int64_t{blockIdx.x} * kDecodeWarps + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = threadIdx.x % 32;
  const int length = clamp_length(params.lengths[row / rows_per_batch], params.cache_tokens);
  const int share = split_share(length, params.splits, kDecodeKeys);
  // Splits past these are empty and were not written.
  const int made = length == 0 ? 0 : (length - 1) / share + 1;
  const float* tops = params.top + row * params.splits;
  float weights[2];
  float highest = -INFINITY;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    weights[i] = lane + 32 * i < made ? tops[lane + 32 * i] : -INFINITY;
    highest = fmaxf(highest, weights[i]);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    highest = fmaxf(highest, __shfl_xor_sync(0xFFFFFFFFu, highest, step));
  }
  const float shift = highest == -INFINITY ? 0.0f : highest;
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    weights[i] = exp2f(weights[i] - shift);
    if (lane + 32 * i < made) {
      total += weights[i] * params.total[row * params.splits + lane + 32 * i];
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    total += __shfl_xor_sync(0xFFFFFFFFu, total, step);
  }
  const float factor = length == 0 ? 0.0f : 1.0f / total;
  const int64_t first_part = row * params.splits;
  for (int channel0 = 0; channel0 < params.head_dim; channel0 += 64) {
    const int channel = channel0 + 2 * lane;
    const bool inside = channel < params.head_dim;
    float sums[2] = {0.0f, 0.0f};
    for (int split = 0; split < made; ++split) {
      const float weight =
          __shfl_sync(0xFFFFFFFFu, split < 32 ? weights[0] : weights[1], split % 32);
      if (inside) {
        const float* part = params.sums + (first_part + split) * params.head_dim + channel;
        const float2 values = *reinterpret_cast<const float2*>(part);
        sums[0] += weight * values.x;
        sums[1] += weight * values.y;
      }
    }
    if (inside) {
      T* out = static_cast<T*>(params.out) + row * params.head_dim + channel;
      *reinterpret_cast<uint32_t*>(out) = pack_pair<T>(sums[0] * factor, sums[1] * factor);
    }
  }
}

}  // namespace bdk
