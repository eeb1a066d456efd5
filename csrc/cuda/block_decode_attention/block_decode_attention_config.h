// Compile-time numbers of block_decode_attention. No CUDA code.
#pragma once

namespace bdk {

// Not tuned on a GPU yet.
constexpr int kDecodeWarps = 4;
constexpr int kDecodeThreads = 32 * kDecodeWarps;
constexpr int kDecodeKeys = 64;   // of a tile
constexpr int kDecodeStages = 2;  // tiles in shared memory: one is read, one in flight
constexpr int kDecodePad = 8;     // padding of a row, so that 8 rows of a matrix lie in 32 banks
constexpr int kDecodeMaxSplits = 64;
constexpr int kDecodeMaxCluster = 8;  // splits that one cluster holds on every card

// Blocks that must fit on a multiprocessor, which limits the registers. With one tile of rows the
// kernel waits for memory and needs many blocks; with more it waits for the tensor cores and needs
// registers.
template <int kRowWarps>
constexpr int kDecodeBlocks = kRowWarps == 1 ? 3 : 2;

// Bytes of shared memory of a block.
template <int kHeadDim>
constexpr int kDecodeShared = kDecodeStages * 2 * kDecodeKeys * (kHeadDim + kDecodePad) * 2;

// Bytes of shared memory of a block of a cluster: parts of its rows lie behind the tiles, which
// other blocks may still read when they are stored. Of `splits` rows side by side each belongs to
// another block.
template <int kHeadDim, int kRowWarps>
constexpr int decode_cluster_shared(int splits) {
  const int owned = (16 * kRowWarps + splits - 1) / splits;
  return kDecodeShared<kHeadDim> + owned * splits * kHeadDim / 2 * 16;
}

}  // namespace bdk
