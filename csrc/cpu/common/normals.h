// The samplers' noise in vectors, one loop per instruction set.
#pragma once

#include "common/philox.h"

namespace bdk {

// Normals of blocks block .. block + blocks - 1 of a row, four each. `normals` has room for
// `blocks` rounded up to a multiple of kNormalBlocks. The normals of a block do not depend on the
// first block of the call.
constexpr int kNormalBlocks = 16;
using Normals = void (*)(NoiseKey key, uint32_t step, uint32_t block, int blocks, float* normals);

void normals_avx2(NoiseKey key, uint32_t step, uint32_t block, int blocks, float* normals);
void normals_avx512(NoiseKey key, uint32_t step, uint32_t block, int blocks, float* normals);

Normals choose_normals();

}  // namespace bdk
