// The sums of a fingerprint, one function per instruction set.
#pragma once

#include <stdint.h>
#include <string.h>

namespace bdk {

constexpr int64_t kSumLanes = 64, kFingerprintBlock = 4 * kSumLanes;

// Adds whole blocks of memory to sums of 32 bits. Before the next word is added, a sum is
// multiplied by an odd number and rotated: no step loses anything, so a change of one word always
// shows, and bits of all places soon depend on it, so that other changes are lost by chance alone.
using AddBlocks = void (*)(const uint8_t* memory, int64_t blocks, uint32_t* sums);

extern const AddBlocks kAddBlocksAvx2, kAddBlocksAvx512;

static inline void add_blocks(const uint8_t* memory, int64_t blocks, uint32_t* sums) {
  using Words = uint32_t __attribute__((vector_size(64)));
  constexpr int kVectors = kFingerprintBlock / sizeof(Words);
  constexpr uint32_t kFactor = 0x9E3779B1;
  Words sum[kVectors];
  memcpy(sum, sums, sizeof sum);
  for (int64_t block = 0; block < blocks; ++block) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      Words words;
      memcpy(&words, memory + block * kFingerprintBlock + i * sizeof words, sizeof words);
      sum[i] *= kFactor;
      sum[i] = (sum[i] << 13 | sum[i] >> 19) + words;
    }
  }
  memcpy(sums, sum, sizeof sum);
}

}  // namespace bdk
