// Compile-time numbers of patch_attention. No CUDA code.
#pragma once

namespace bdk {

// Untuned until a card has decided.
constexpr int kPatchQueries = 16;  // of a warp, and keys that it takes at a time
constexpr int kPatchPad = 4;       // values behind a token: neighbours lie in different banks
constexpr int kPatchMostWarps = 4;

// Bytes of shared memory of a block: q, k and v of all tokens of a patch.
template <int kHeadDim, int kWarps>
constexpr int kPatchShared = 3 * kPatchQueries * kWarps * (kHeadDim + kPatchPad) * 4;

}  // namespace bdk
