// Device code of finalize_bits: a thread makes eight adjacent signs and their byte.
#pragma once

#include <stdint.h>

#include "common/guidance.h"
#include "cuda/common/load_store.cuh"
#include "cuda/common/vec8.cuh"
#include "cuda/finalize_bits/finalize_bits_config.h"

namespace bdk {

struct FinalizeBitsParams {
  const void* x0;    // [8 * bytes], or [2, 8 * bytes] with cfg
  const float* cfg;  // one, read here, or null
  void* signs;
  uint8_t* packed;
  int64_t bytes;
};

// Pattern: the unsigned integer as wide as T; `one` is the pattern of +1.
template <class T, class Pattern, bool kVector>
__global__ void __launch_bounds__(kFinalizeBitsThreads)
    finalize_bits_kernel(const FinalizeBitsParams params, const Pattern one) {
  const T* x0 = static_cast<const T*>(params.x0);
  Pattern* signs = static_cast<Pattern*>(params.signs);
  const float cfg = params.cfg != nullptr ? *params.cfg : 1.0f;
  const int64_t round = int64_t{gridDim.x} * kFinalizeBitsThreads;
  int64_t i = int64_t{blockIdx.x} * kFinalizeBitsThreads + threadIdx.x;
  for (; i < params.bytes; i += round) {
    float value[8];
    load_widened<kVector>(x0 + 8 * i, 8, value);
    if (params.cfg != nullptr) {
      float other[8];
      load_widened<kVector>(x0 + 8 * (params.bytes + i), 8, other);
#pragma unroll
      for (int k = 0; k < 8; ++k) value[k] = guide(value[k], other[k], cfg);
    }
    Vec8<Pattern> eight;
    uint32_t bits = 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const uint32_t bit = value[k] > 0.0f ? 1u : 0u;
      bits |= bit << k;
      eight.pattern[k] = static_cast<Pattern>(one | ((bit ^ 1u) << (8 * sizeof(Pattern) - 1)));
    }
    eight.store(signs + 8 * i);
    params.packed[i] = static_cast<uint8_t>(bits);
  }
}

}  // namespace bdk
