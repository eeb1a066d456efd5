// Compile-time numbers of patch_attention. No CUDA code.
#pragma once

namespace bdk {

// Not tuned on a GPU yet.
constexpr int kPatchQueries = 16;  // queries of a warp, and keys that it takes at a time
constexpr int kPatchPad = 4;       // padding of a token, so that neighbours lie in different banks
constexpr int kPatchMaxWarps = 4;

// Bytes of shared memory of a block: q, k and v of all tokens of a patch.
template <int kHeadDim, int kWarps>
constexpr int kPatchShared = 3 * kPatchQueries * kWarps * (kHeadDim + kPatchPad) * 4;

}  // namespace bdk
