// Constants and sizes of skinny_product, for host and device.
#pragma once

#include <stdint.h>

#include "common/host_device.h"

namespace bdk {

enum SkinnyNorm { kSkinnyNoNorm = 0, kSkinnyLayerNorm = 1, kSkinnyRmsNorm = 2 };
enum SkinnyEpilogue { kSkinnyPlain = 0, kSkinnySwiglu = 1, kSkinnyGated = 2, kSkinnyRope = 3 };

constexpr int kSkinnyMaxRows = 128;

// Steps of 16 channels whose weights a warp holds at a time, and threads of a block: what the
// registers allow, so that the blocks of two kernels fit a multiprocessor beside each other. Float8
// weights take half of the registers; with more than 8 tokens shared memory allows no more steps.
template <int kTokens, bool kFloat8 = false>
constexpr int kSkinnySteps = kTokens > 64              ? 3
                             : kTokens == 8 && kFloat8 ? 12
                                                       : 6;
template <int kTokens, bool kRope>
constexpr int kSkinnyMaxThreads = kTokens == 32 && !kRope ? 576 : 512;

// Elements from a row of inputs to the next: the rows of a tile lie in different banks.
BDK_HOST_DEVICE constexpr int skinny_pitch(int parts, int depth) { return 16 * parts * depth + 8; }

// Bytes of the inputs, of the norm's weight and bias, of the rows' moments, and of the squares of
// heads: 8 sums for each of 18 warps.
BDK_HOST_DEVICE constexpr int skinny_inputs_bytes(int rows, int pitch) {
  return (rows + 4) * pitch * 2 + (rows * 8 + 18 * 8 * 4 + 15) / 16 * 16;
}

// Chunks of channels that the largest share of a block takes.
BDK_HOST_DEVICE constexpr int skinny_chunks(int steps, int split, int chunk_steps) {
  return ((steps + split - 1) / split + chunk_steps - 1) / chunk_steps;
}

// Steps of a part in a chunk: as few chunks as the registers allow, of equal depth.
template <int kTokens, bool kFloat8 = false>
BDK_HOST_DEVICE constexpr int skinny_depth(int steps, int split, int parts) {
  constexpr int kSteps = kSkinnySteps<kTokens, kFloat8>;
  const int share = ((steps + split - 1) / split + parts - 1) / parts;
  const int chunks = (share + kSteps - 1) / kSteps;
  return (share + chunks - 1) / chunks;
}

BDK_HOST_DEVICE constexpr int skinny_shared_bytes(int rows, int tiles, int parts, int split,
                                                  int depth, int group) {
  const int items = tiles / group * ((rows + 7) / 8);
  const int slots = (items + split - 1) / split * group;
  return skinny_inputs_bytes(rows, skinny_pitch(parts, depth)) + slots * split * parts * 32 * 16;
}

}  // namespace bdk
