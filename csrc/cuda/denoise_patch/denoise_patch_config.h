// Compile-time numbers of the denoise_patch kernel. No CUDA code.
#pragma once

namespace bdk {

constexpr int kPatchWarps = 8;  // they divide the channels of every product
constexpr int kPatchThreads = 32 * kPatchWarps;
constexpr int kPatchBits = 32;     // channels of the state
constexpr int kPatchMaxRows = 32;  // of a batch, both halves of a guided one counted
constexpr int kPatchTiles = 2;     // of 16 features of the first product that a block takes at most
constexpr int kPatchHeadDim = 64;  // of an attention
constexpr int kPatchMaxTokens = 16;  // of a patch, with attention
constexpr int kPatchSharedLimit = 227 * 1024;

}  // namespace bdk
