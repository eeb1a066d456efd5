// The noise of the samplers: Philox4x32-10 words and Box-Muller normals, the same in C++ and CUDA.
//
// bitdance_kernels/philox.py defines what is computed here: the key is the 64-bit seed, low word
// first, the counter is (element / 4, denoise step, 2 * AR step + stream, sample id), and element
// 4 j + k of a row takes word k of block j. Words are equal everywhere; normals agree within the
// rounding of each device's logarithm, sine and cosine.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/host_device.h"

namespace bdk {

struct PhiloxWords {
  uint32_t word[4];
};

// Key and counter words of a row, from the int64 [3] that noise_keys makes.
struct NoiseKey {
  uint32_t seed_low, seed_high;
  uint32_t ar_step;  // 2 * AR step + stream
  uint32_t sample;
};

struct NormalPair {
  float first, second;
};

// One round: two 32 x 32-bit products, whose high words are mixed with the other half and the key.
BDK_HOST_DEVICE static inline PhiloxWords philox_round(PhiloxWords c, uint32_t key0,
                                                       uint32_t key1) {
  const uint64_t p = uint64_t{0xD2511F53u} * c.word[0];
  const uint64_t q = uint64_t{0xCD9E8D57u} * c.word[2];
  return {{static_cast<uint32_t>(q >> 32) ^ c.word[1] ^ key0, static_cast<uint32_t>(q),
           static_cast<uint32_t>(p >> 32) ^ c.word[3] ^ key1, static_cast<uint32_t>(p)}};
}

constexpr int kPhiloxRounds = 10;

// The keys of all rounds, for a loop that draws many words under one key.
struct PhiloxKeys {
  uint32_t key0[kPhiloxRounds], key1[kPhiloxRounds];
};

BDK_HOST_DEVICE static inline PhiloxKeys philox_keys(uint32_t key0, uint32_t key1) {
  PhiloxKeys keys;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    keys.key0[round] = key0;
    keys.key1[round] = key1;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return keys;
}

BDK_HOST_DEVICE static inline PhiloxWords philox4x32(PhiloxWords counter, const PhiloxKeys& keys) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    counter = philox_round(counter, keys.key0[round], keys.key1[round]);
  }
  return counter;
}

BDK_HOST_DEVICE static inline PhiloxWords philox4x32(PhiloxWords counter, uint32_t key0,
                                                     uint32_t key1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    counter = philox_round(counter, key0, key1);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

BDK_HOST_DEVICE static inline NoiseKey noise_key(const int64_t* key) {
  const uint64_t seed = static_cast<uint64_t>(key[0]);
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
          static_cast<uint32_t>(key[1]), static_cast<uint32_t>(key[2])};
}

// The words of elements 4 * block .. 4 * block + 3 of a row.
BDK_HOST_DEVICE static inline PhiloxWords noise_words(NoiseKey key, uint32_t block, uint32_t step) {
  return philox4x32({{block, step, key.ar_step, key.sample}}, key.seed_low, key.seed_high);
}

// (0, 1], in steps of 2^-24; the addition rounds once, the product is exact.
BDK_HOST_DEVICE static inline float noise_uniform(uint32_t word) {
  return (static_cast<float>(word >> 8) + 0.5f) * 0x1p-24f;
}

BDK_HOST_DEVICE static inline NormalPair noise_normals(uint32_t word0, uint32_t word1) {
  const float radius = sqrtf(-2.0f * logf(noise_uniform(word0)));
  const float turn = noise_uniform(word1);
  float sine, cosine;
#ifdef __CUDA_ARCH__
  sincospif(2.0f * turn, &sine, &cosine);  // needs no reduction by an inexact 2 pi
#else
  const float theta = 6.28318530717958647692f * turn;
  sine = sinf(theta);
  cosine = cosf(theta);
#endif
  return {radius * cosine, radius * sine};
}

// The normals of one block, in the order of its elements.
BDK_HOST_DEVICE static inline void noise_block(PhiloxWords words, float normals[4]) {
  const NormalPair lower = noise_normals(words.word[0], words.word[1]);
  const NormalPair upper = noise_normals(words.word[2], words.word[3]);
  normals[0] = lower.first;
  normals[1] = lower.second;
  normals[2] = upper.first;
  normals[3] = upper.second;
}

}  // namespace bdk
