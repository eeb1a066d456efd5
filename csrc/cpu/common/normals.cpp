// The samplers' noise: scalar loop, choice of the instruction set.
#include "cpu/common/normals.h"

#include "cpu/common/isa.h"

namespace bdk {
namespace {

void normals_scalar(NoiseKey key, uint32_t step, uint32_t block, int blocks, float* normals) {
  for (int i = 0; i < blocks; ++i) {
    noise_block(noise_words(key, block + static_cast<uint32_t>(i), step), normals + 4 * i);
  }
}

}  // namespace

Normals choose_normals() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return normals_avx512;
  if (active_isa() == kAvx2) return normals_avx2;
#endif
  return normals_scalar;
}

}  // namespace bdk
