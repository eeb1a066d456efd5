// Device code of block_decode_attention in one launch: the splits of a cache are the blocks of a
// cluster, and are combined in shared memory.
//
// Every row of a tile has an owner among the blocks. A block stores its part of a row into the
// owner's shared memory, and behind a barrier the owner sums the parts of its rows, in the order of
// the splits.
#pragma once

#include "cuda/block_decode_attention/block_decode_attention.cuh"
#include "cuda/common/machine_sm90.cuh"

namespace bdk {

// Parts of the rows that a block owns, [rows][splits][pairs of channels]: two sums, which are
// relative to 2^top, top and total.
template <class T, int kHeadDim, int kRowWarps>
__device__ inline void combine_rows(const DecodeParams& params, const DecodeWork& work,
                                    const float4* parts) {
  constexpr int kPairs = kHeadDim / 2;
  const int rows = params.tokens * params.group - 16 * kRowWarps * work.row_tile;
  const int tile_rows = rows < 16 * kRowWarps ? rows : 16 * kRowWarps;
  const int share = split_share(work.length, params.splits, kDecodeKeys);
  const int made = work.length == 0 ? 0 : (work.length - 1) / share + 1;  // others are empty
  const int owned = (16 * kRowWarps + params.splits - 1) / params.splits;
  for (int i = threadIdx.x; i < owned * kPairs; i += kDecodeThreads) {
    const int row = i / kPairs * params.splits + work.split;
    const int channel = 2 * (i % kPairs);
    if (row >= tile_rows || channel >= params.head_dim) continue;
    const float4* part = parts + (i / kPairs * params.splits * kPairs + i % kPairs);
    float top = -INFINITY;
    for (int s = 0; s < made; ++s) top = fmaxf(top, part[s * kPairs].z);
    // A row that has seen nothing but -inf has weights 0, not exp(-inf + inf).
    const float shift = top == -INFINITY ? 0.0f : top;
    float first = 0.0f, second = 0.0f, total = 0.0f;
    for (int s = 0; s < made; ++s) {
      const float4 values = part[s * kPairs];
      const float weight = exp2f(values.z - shift);
      first += weight * values.x;
      second += weight * values.y;
      total += weight * values.w;
    }
    const float factor = made == 0 ? 0.0f : 1.0f / total;
    T* out = static_cast<T*>(params.out) + out_row<kRowWarps>(params, work, row) * params.head_dim +
             channel;
    *reinterpret_cast<uint32_t*>(out) = pack_pair<T>(first * factor, second * factor);
  }
}

// A cluster has params.splits blocks.
template <class T, int kHeadDim, int kRowWarps>
__global__ void __launch_bounds__(kDecodeThreads, kDecodeBlocks<kRowWarps>)
    decode_cluster_kernel(const DecodeParams params) {
  constexpr int kPairs = kHeadDim / 2;
  BDK_SHARED_BYTES(memory);
  float4* parts = reinterpret_cast<float4*>(memory + kDecodeShared<kHeadDim>);
  launch_dependents();
  cluster_arrive_relaxed();
  wait_for_previous();  // which may write all that is read here
  const DecodeWork work = decode_work(params);
  cluster_wait();  // all blocks have begun, so they can be stored to
  if (work.keys.first < work.keys.last) {
    decode_split<T, kHeadDim, kRowWarps>(
        params, work, memory,
        [&](int row, int channel, float first, float second, float top, float total) {
          const int at = (row / params.splits * params.splits + work.split) * kPairs + channel / 2;
          store_to_block(parts + at, row % params.splits, make_float4(first, second, top, total));
        });
  }
  cluster_sync();
  combine_rows<T, kHeadDim, kRowWarps>(params, work, parts);
}

}  // namespace bdk
