// denoise_step and the linear layer that reads the new state, for up to 128 rows of its result.
//
// A block takes 16 features of all tokens, with the weights as the A operand (see
// skinny_product_sm90.cuh), and computes the state of all tokens for itself, which takes less time
// than an exchange between blocks. Until wait_for_previous() it fetches the weights and draws the
// noise, which depend on nothing that the kernels of a chain write.
#pragma once

#include "common/guidance.h"
#include "common/philox.h"
#include "cuda/common/load_store.cuh"
#include "cuda/common/machine_sm90.cuh"
#include "cuda/common/mma.cuh"

namespace bdk {

constexpr int kStepLinearThreads = 256, kStepLinearMaxTokens = 128, kStepLinearMaxBits = 128;
constexpr int kStepLinearPad = 8;  // elements, so that the rows of a tile lie in different banks

struct DenoiseStepLinearParams {
  const float* x;  // [tokens, bits]
  const void* x0;  // the same, or [2, tokens, bits] with cfg
  const float* table;
  const void* step;  // one integer of 4 or 8 bytes
  bool wide_step, squash;
  const float* cfg;     // one, or null
  const float* noise;   // [tokens, bits], or null
  const int64_t* keys;  // [tokens / patch, 3], where noise is null
  const uint4* weight;  // [features / 16][bits / 16][32] fragments
  const void* bias;     // [features] or null
  float* state;         // [tokens, bits]
  void* stream;         // [tokens, features], twice with cfg
  float2* moments;      // of stream, [.., features / 16]
  int tokens, patch, bits, features;
};

// Shared memory of a block: the state of all tokens, rounded.
inline int step_linear_shared_bytes(int tokens, int bits) {
  return tokens * (bits + kStepLinearPad) * 2;
}

template <class T>
struct DenoiseStepLinear {
  static constexpr int kSteps = kStepLinearMaxBits / 16;
  static constexpr int kDrawn = 2;  // quads of bits of a thread whose noise is drawn early

  const DenoiseStepLinearParams& p;
  T* states;  // [tokens][bits + kStepLinearPad]
  int64_t step;

  __device__ void draw(int quad, float (&normals)[4]) const {
    const int row_quads = p.patch * p.bits / 4;
    const NoiseKey key = noise_key(p.keys + 3 * (quad / row_quads));
    noise_block(
        noise_words(key, static_cast<uint32_t>(quad % row_quads), static_cast<uint32_t>(step + 1)),
        normals);
  }

  __device__ float prediction(int64_t at) const {
    const float x = to_float(static_cast<const T*>(p.x0)[at]);
    return p.squash ? to_float(from_float<T>(2.0f / (1.0f + expf(-x)) - 1.0f)) : x;
  }

  // The new state of four bits of a token.
  __device__ void advance(int quad, const float (&normals)[4]) const {
    const float a = p.table[3 * step], b = p.table[3 * step + 1], s = p.table[3 * step + 2];
    const int token = 4 * quad / p.bits, bit = 4 * quad % p.bits;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int at = 4 * quad + k;
      float x0 = prediction(at);
      if (p.cfg != nullptr) x0 = guide(x0, prediction(at + p.tokens * p.bits), *p.cfg);
      const float noise = p.noise != nullptr ? p.noise[at] : normals[k];
      const float y = fmaf(s, noise, fmaf(b, x0, a * p.x[at]));
      if (blockIdx.x == 0) p.state[at] = y;
      states[token * (p.bits + kStepLinearPad) + bit + k] = from_float<T>(y);
    }
  }

  // Two features of two tokens: lane = 4 i + j has features i and i + 8, tokens 2 j and 2 j + 1.
  __device__ void store(int first_token, const float (&sums)[4]) const {
    const int lane = threadIdx.x % 32, feature = blockIdx.x * 16 + lane / 4;
    const T* bias = static_cast<const T*>(p.bias);
    T* stream = static_cast<T*>(p.stream);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int token = first_token + lane % 4 * 2 + e;
      T y[2];
      float v[2], mean = 0.0f;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float b = bias != nullptr ? to_float(bias[feature + 8 * h]) : 0.0f;
        y[h] = from_float<T>(sums[2 * h + e] + b);
        v[h] = to_float(y[h]);
        mean += v[h];
      }
#pragma unroll
      for (int o = 4; o < 32; o *= 2) mean += __shfl_xor_sync(0xFFFFFFFFu, mean, o);
      mean /= 16.0f;
      float squares = (v[0] - mean) * (v[0] - mean) + (v[1] - mean) * (v[1] - mean);
#pragma unroll
      for (int o = 4; o < 32; o *= 2) squares += __shfl_xor_sync(0xFFFFFFFFu, squares, o);
      if (token >= p.tokens) continue;
      for (int half = 0; half < (p.cfg != nullptr ? 2 : 1); ++half) {
        const int64_t row = token + half * p.tokens;
        stream[row * p.features + feature] = y[0];
        stream[row * p.features + feature + 8] = y[1];
        if (lane < 4) {
          p.moments[row * (p.features / 16) + blockIdx.x] = make_float2(mean, squares);
        }
      }
    }
  }

  __device__ void run() {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, steps = p.bits / 16;
    uint4 a[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (s < steps) a[s] = load_weight(p.weight + (int64_t{blockIdx.x} * steps + s) * 32 + lane);
    }
    launch_dependents();  // before anything that takes time
    step =
        p.wide_step ? *static_cast<const int64_t*>(p.step) : *static_cast<const int32_t*>(p.step);
    const int quads = p.tokens * p.bits / 4;
    float normals[kDrawn][4];
#pragma unroll
    for (int d = 0; d < kDrawn; ++d) {
      const int quad = threadIdx.x + d * kStepLinearThreads;
      if (p.noise == nullptr && quad < quads) draw(quad, normals[d]);
    }
    wait_for_previous();
#pragma unroll
    for (int d = 0; d < kDrawn; ++d) {
      const int quad = threadIdx.x + d * kStepLinearThreads;
      if (quad < quads) advance(quad, normals[d]);
    }
    for (int quad = threadIdx.x + kDrawn * kStepLinearThreads; quad < quads;
         quad += kStepLinearThreads) {
      if (p.noise == nullptr) draw(quad, normals[0]);
      advance(quad, normals[0]);
    }
    __syncthreads();
    for (int first = 8 * warp; first < p.tokens; first += 8 * kStepLinearThreads / 32) {
      // Tokens past the last one are columns that nobody reads: any row serves them.
      const int token = first + lane / 4 < p.tokens ? first + lane / 4 : 0;
      const T* row = states + token * (p.bits + kStepLinearPad) + lane % 4 * 2;
      float sums[4] = {};
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        if (s >= steps) break;
        const uint32_t words[4] = {a[s].x, a[s].y, a[s].z, a[s].w};
        mma_16x8x16<T>(sums, words, *reinterpret_cast<const uint32_t*>(row + 16 * s),
                       *reinterpret_cast<const uint32_t*>(row + 16 * s + 8));
      }
      store(first, sums);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kStepLinearThreads)
    denoise_step_linear_kernel(const DenoiseStepLinearParams params) {
  BDK_SHARED_BYTES(shared);
  DenoiseStepLinear<T> kernel{params, reinterpret_cast<T*>(shared), 0};
  kernel.run();
}

}  // namespace bdk
