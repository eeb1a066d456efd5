// Compile-time numbers of block_decode_attention. No CUDA code.
#pragma once

namespace bdk {

// Untuned until a card has decided.
constexpr int kDecodeWarps = 4;
constexpr int kDecodeThreads = 32 * kDecodeWarps;
constexpr int kDecodeKeys = 64;   // of a tile
constexpr int kDecodeStages = 2;  // tiles in shared memory: one is read, one is on its way
constexpr int kDecodePad = 8;     // values behind a row: 8 rows of a matrix lie in 32 banks
constexpr int kDecodeMostSplits = 64;

// Blocks that a multiprocessor shall have room for: what registers are given up for. One tile of
// rows waits for memory and wants many; many rows wait for the tensor cores and want their
// registers.
template <int kRowWarps>
constexpr int kDecodeBlocks = kRowWarps == 1 ? 3 : 2;

// Bytes of shared memory of a block.
template <int kHeadDim>
constexpr int kDecodeShared = kDecodeStages * 2 * kDecodeKeys * (kHeadDim + kDecodePad) * 2;

}  // namespace bdk
