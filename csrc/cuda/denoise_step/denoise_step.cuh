// Device code of denoise_step: a thread makes four values, those of one Philox counter.
#pragma once

#include <stdint.h>

#include "common/guidance.h"
#include "common/philox.h"
#include "cuda/common/load_store.cuh"
#include "cuda/denoise_step/denoise_step_config.h"

namespace bdk {

// Everything that changes from step to step is read on the device, so one captured graph serves
// all.
struct DenoiseStepParams {
  const float* x;  // [rows, elements]
  const void* x0;  // the same, or [2, rows, elements] with cfg
  const float* table;
  const void* step;  // one integer of 4 or 8 bytes
  bool wide_step;
  const float* cfg;     // one, or null
  const float* noise;   // [rows, elements], or null
  const int64_t* keys;  // [rows, 3], where noise is null
  float* y;
  int64_t elements;
  int64_t row_blocks;  // blocks of four in a row, the last one possibly cut
  int64_t blocks;      // rows * row_blocks
  int64_t values;      // rows * elements
};

// kVector: four adjacent values may be moved at once, and no block is cut.
template <class T, bool kVector>
__global__ void __launch_bounds__(kDenoiseStepThreads)
    denoise_step_kernel(const DenoiseStepParams params) {
  const int64_t step = params.wide_step ? *static_cast<const int64_t*>(params.step)
                                        : *static_cast<const int32_t*>(params.step);
  const float a = params.table[3 * step];
  const float b = params.table[3 * step + 1];
  const float s = params.table[3 * step + 2];
  const float cfg = params.cfg != nullptr ? *params.cfg : 1.0f;
  const T* x0 = static_cast<const T*>(params.x0);
  const int64_t round = int64_t{gridDim.x} * kDenoiseStepThreads;
  int64_t i = int64_t{blockIdx.x} * kDenoiseStepThreads + threadIdx.x;
  for (; i < params.blocks; i += round) {
    const int64_t row = i / params.row_blocks;
    const int64_t block = i - row * params.row_blocks;
    const int64_t first = row * params.elements + 4 * block;
    const int64_t rest = params.elements - 4 * block;
    float x[4], guided[4], eps[4];
    load_widened<kVector>(params.x + first, rest, x);
    load_widened<kVector>(x0 + first, rest, guided);
    if (params.cfg != nullptr) {
      float other[4];
      load_widened<kVector>(x0 + params.values + first, rest, other);
#pragma unroll
      for (int k = 0; k < 4; ++k) guided[k] = guide(guided[k], other[k], cfg);
    }
    if (params.noise != nullptr) {
      load_widened<kVector>(params.noise + first, rest, eps);
    } else {
      const NoiseKey key = noise_key(params.keys + 3 * row);
      noise_block(noise_words(key, static_cast<uint32_t>(block), static_cast<uint32_t>(step + 1)),
                  eps);
    }
    float y[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) y[k] = fmaf(s, eps[k], fmaf(b, guided[k], a * x[k]));
    if constexpr (kVector) {
      *reinterpret_cast<float4*>(params.y + first) = make_float4(y[0], y[1], y[2], y[3]);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (k < rest) params.y[first + k] = y[k];
      }
    }
  }
}

}  // namespace bdk
