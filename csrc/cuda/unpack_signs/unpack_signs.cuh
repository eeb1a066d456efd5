// Device code of unpack_signs: a thread spreads one byte over eight adjacent values, in 16-byte
// stores. The output is always a fresh contiguous tensor, so its stores are always aligned.
#pragma once

#include <stdint.h>

#include "cuda/unpack_signs/unpack_signs_config.h"

namespace bdk {

struct UnpackSignsParams {
  const uint8_t* packed;
  void* y;
  int64_t bytes;       // rows * row_bytes
  int64_t row_bytes;   // channels / 8
  int64_t row_stride;  // bytes
};

template <class Pattern>
__device__ void store_eight(Pattern* y, uint32_t byte, Pattern one) {
  constexpr int kPerWord = 4 / sizeof(Pattern);  // values in a 32-bit word
  constexpr int kWords = 8 / kPerWord;
  constexpr int kBits = 8 * sizeof(Pattern);
  uint32_t words[kWords];
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    words[w] = 0;
#pragma unroll
    for (int k = 0; k < kPerWord; ++k) {
      const uint32_t missing = (~byte >> (w * kPerWord + k)) & 1u;
      words[w] |= (uint32_t{one} | missing << (kBits - 1)) << (k * kBits);
    }
  }
  uint4* out = reinterpret_cast<uint4*>(y);
#pragma unroll
  for (int w = 0; w < kWords; w += 4) {
    out[w / 4] = make_uint4(words[w], words[w + 1], words[w + 2], words[w + 3]);
  }
}

// kEven: the rows follow each other without a gap, so a byte's place needs no division.
template <class Pattern, bool kEven>
__global__ void __launch_bounds__(kUnpackSignsThreads)
    unpack_signs_kernel(const UnpackSignsParams params, const Pattern one) {
  Pattern* y = static_cast<Pattern*>(params.y);
  const int64_t round = int64_t{gridDim.x} * kUnpackSignsThreads;
  int64_t byte = int64_t{blockIdx.x} * kUnpackSignsThreads + threadIdx.x;
  for (; byte < params.bytes; byte += round * kUnpackSignsUnroll) {
#pragma unroll
    for (int u = 0; u < kUnpackSignsUnroll; ++u) {
      const int64_t i = byte + u * round;
      if (i >= params.bytes) break;
      const int64_t source =
          kEven ? i : i / params.row_bytes * params.row_stride + i % params.row_bytes;
      store_eight(y + i * 8, params.packed[source], one);
    }
  }
}

}  // namespace bdk
