// Device code of pack_signs: a thread makes one byte of eight adjacent values.
//
// float32: two 16-byte loads a byte, 32 bytes a thread, so a warp reads 1 KiB without a gap; 16-bit
// formats: one 16-byte load; bytes: one 8-byte load. A warp stores 32 adjacent bytes, one sector.
#pragma once

#include <stdint.h>

#include "common/bits.h"
#include "cuda/common/vec8.cuh"
#include "cuda/pack_signs/pack_signs_config.h"

namespace bdk {

struct PackSignsParams {
  const void* x;
  uint8_t* packed;
  int64_t bytes;       // rows * row_bytes
  int64_t row_bytes;   // channels / 8
  int64_t row_stride;  // elements
};

template <class Pattern>
__device__ uint8_t byte_of(const Vec8<Pattern>& values, Pattern infinity) {
  uint32_t bits = 0;
#pragma unroll
  for (int k = 0; k < 8; ++k) bits |= positive(values.pattern[k], infinity) << k;
  return static_cast<uint8_t>(bits);
}

// kEven: the rows follow each other without a gap, so a byte's place needs no division.
template <class Pattern, bool kVector, bool kEven>
__global__ void __launch_bounds__(kPackSignsThreads)
    pack_signs_kernel(const PackSignsParams params, const Pattern infinity) {
  const Pattern* x = static_cast<const Pattern*>(params.x);
  const int64_t round = int64_t{gridDim.x} * kPackSignsThreads;
  int64_t byte = int64_t{blockIdx.x} * kPackSignsThreads + threadIdx.x;
  for (; byte < params.bytes; byte += round * kPackSignsUnroll) {
    Vec8<Pattern> values[kPackSignsUnroll];
#pragma unroll
    for (int u = 0; u < kPackSignsUnroll; ++u) {
      const int64_t i = byte + u * round;
      if (i >= params.bytes) break;
      const int64_t offset =
          kEven ? i * 8 : i / params.row_bytes * params.row_stride + i % params.row_bytes * 8;
      values[u].template load<kVector>(x + offset);
    }
#pragma unroll
    for (int u = 0; u < kPackSignsUnroll; ++u) {
      const int64_t i = byte + u * round;
      if (i >= params.bytes) break;
      params.packed[i] = byte_of(values[u], infinity);
    }
  }
}

}  // namespace bdk
