// Device code of noise: a thread makes one block of four elements.
#pragma once

#include <stdint.h>

#include "common/philox.h"

namespace bdk {

constexpr int kNoiseThreads = 256;

struct NoiseParams {
  const int64_t* keys;  // [rows, 3]
  const int64_t* step;  // one value, read on the device, so that a captured graph can change it
  float* normals;       // [rows, elements]
  uint32_t* words;      // [rows, elements] or null
  int64_t elements;
  int64_t row_blocks;  // blocks of four in a row, the last one possibly cut
  int64_t blocks;      // rows * row_blocks
};

__global__ void __launch_bounds__(kNoiseThreads) noise_kernel(const NoiseParams params) {
  const uint32_t step = static_cast<uint32_t>(*params.step);
  const int64_t round = int64_t{gridDim.x} * kNoiseThreads;
  int64_t i = int64_t{blockIdx.x} * kNoiseThreads + threadIdx.x;
  for (; i < params.blocks; i += round) {
    const int64_t row = i / params.row_blocks;
    const int64_t block = i % params.row_blocks;
    const PhiloxWords drawn =
        noise_words(noise_key(params.keys + row * 3), static_cast<uint32_t>(block), step);
    float four[4];
    noise_block(drawn, four);
    const int64_t first = row * params.elements + block * 4;
    const int64_t rest = params.elements - block * 4;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k < rest) {
        params.normals[first + k] = four[k];
        if (params.words != nullptr) params.words[first + k] = drawn.word[k];
      }
    }
  }
}

}  // namespace bdk
