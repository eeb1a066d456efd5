// A hash of memory, to tell whether it has changed since it was last read.
#include "cpu/common/fingerprint.h"

#include "bitdance_kernels.h"
#include "cpu/common/isa.h"

namespace bdk {
namespace {

constexpr uint64_t kFoldFactor = 0x9E3779B97F4A7C15;

AddBlocks choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kAddBlocksAvx512;
  if (active_isa() == kAvx2) return kAddBlocksAvx2;
#endif
  return add_blocks;
}

}  // namespace
}  // namespace bdk

int bdk_fingerprint_cpu(const void* memory, int64_t bytes, uint64_t* fingerprints, int64_t index) {
  using namespace bdk;
  if (bytes < 0 || index < 0) return BDK_BAD_SIZE;
  const AddBlocks add = choose();
  const auto* const from = static_cast<const uint8_t*>(memory);
  uint32_t sums[kSumLanes] = {};
  const int64_t blocks = bytes / kFingerprintBlock, rest = bytes % kFingerprintBlock;
  add(from, blocks, sums);
  if (rest > 0) {
    uint8_t last[kFingerprintBlock] = {};
    memcpy(last, from + blocks * kFingerprintBlock, rest);
    add(last, 1, sums);
  }
  // Each step is a permutation of the 64 bits.
  uint64_t hash = static_cast<uint64_t>(bytes);
  for (int64_t lane = 0; lane < kSumLanes; ++lane) {
    hash = (hash ^ sums[lane]) * kFoldFactor;
    hash ^= hash >> 32;
  }
  fingerprints[index] = hash;
  return BDK_OK;
}
