// Device code of rope_append: a few lanes take one query, key or value head of one new token.
#pragma once

#include "common/rotation.h"
#include "cuda/common/load_store.cuh"
#include "cuda/rope_append/rope_append_config.h"

namespace bdk {

struct RopeAppendParams {
  const void* qkv;      // [batch, tokens, heads + 2 kv_heads, head_dim]
  void* q;              // [batch, tokens, heads, head_dim], contiguous
  void* k_cache;        // [batch, cache_tokens, kv_heads, head_dim]
  void* v_cache;        // as k_cache
  const int* position;  // [batch]
  const void* freqs;    // [positions, head_dim / 2, 2]
  const void* q_norm;   // [head_dim] or null
  const void* k_norm;
  int64_t qkv_batch, qkv_token;
  int64_t k_batch, k_token, k_head;
  int64_t v_batch, v_token, v_head;
  unsigned int items;  // heads of all tokens
  int tokens, heads, kv_heads, head_dim;
  int lanes;  // lanes of a head: head_dim / 8, rounded up to a power of two
  int freqs_dtype, q_norm_dtype, k_norm_dtype;
  float eps;
};

// Pairs of a head from kRopePairs * lane on: (a, b)[i] is pair i.
template <class T, bool kInterleaved>
struct Pairs {
  using Vector = Vec<T, kRopePairs>;
  Vector low, high;  // as they lie in memory

  // Distance of the second vector from the first.
  __device__ static int apart(int head_dim) { return kInterleaved ? kRopePairs : head_dim / 2; }
  __device__ static int first(int lane) { return (kInterleaved ? 2 : 1) * kRopePairs * lane; }

  // Channel of the first or the second member of pair i.
  __device__ static int channel(int lane, int i, int second, int head_dim) {
    if constexpr (kInterleaved) return first(lane) + 2 * i + second;
    return first(lane) + i + second * (head_dim / 2);
  }

  __device__ void load(const T* head, int lane, int head_dim) {
    const T* from = head + first(lane);
    low = *reinterpret_cast<const Vector*>(from);
    high = *reinterpret_cast<const Vector*>(from + apart(head_dim));
  }

  __device__ void store(T* head, int lane, int head_dim) const {
    T* to = head + first(lane);
    *reinterpret_cast<Vector*>(to) = low;
    *reinterpret_cast<Vector*>(to + apart(head_dim)) = high;
  }

  __device__ T& member(int i, int second) {
    if constexpr (kInterleaved) {
      const int at = 2 * i + second;
      return at < kRopePairs ? low.at[at] : high.at[at - kRopePairs];
    } else {
      return second ? high.at[i] : low.at[i];
    }
  }
};

template <class T, bool kInterleaved>
__global__ void __launch_bounds__(kRopeThreads) rope_append_kernel(const RopeAppendParams params) {
  const int per_block = kRopeThreads / params.lanes;
  const unsigned int item = blockIdx.x * per_block + threadIdx.x / params.lanes;
  const int lane = threadIdx.x % params.lanes;
  // Lanes without work stay for the sum over a head.
  const bool real = item < params.items && lane < params.head_dim / (2 * kRopePairs);
  const int all_heads = params.heads + 2 * params.kv_heads;
  const unsigned int row = real ? item / all_heads : 0;
  const int head = real ? item % all_heads : 0;
  const int64_t batch = row / params.tokens;
  const int p = row % params.tokens;
  const int64_t position = int64_t{params.position[batch]} + p;

  const bool is_q = head < params.heads;
  const bool is_v = head >= params.heads + params.kv_heads;
  Pairs<T, kInterleaved> pairs = {};
  if (real) {
    const T* from = static_cast<const T*>(params.qkv) + batch * params.qkv_batch +
                    p * params.qkv_token + int64_t{head} * params.head_dim;
    pairs.load(from, lane, params.head_dim);
  }
  float a[kRopePairs], b[kRopePairs];
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kRopePairs; ++i) {
    a[i] = to_float(pairs.member(i, 0));
    b[i] = to_float(pairs.member(i, 1));
    squares += a[i] * a[i] + b[i] * b[i];
  }
  const void* norm = is_q ? params.q_norm : params.k_norm;
  if (params.q_norm != nullptr || params.k_norm != nullptr) {
    for (int step = params.lanes / 2; step > 0; step /= 2) {
      squares += __shfl_xor_sync(0xFFFFFFFFu, squares, step);
    }
  }
  if (!real) return;

  T* to;
  if (is_q) {
    to = static_cast<T*>(params.q) + (int64_t{row} * params.heads + head) * params.head_dim;
  } else if (!is_v) {
    to = static_cast<T*>(params.k_cache) + batch * params.k_batch + position * params.k_token +
         (head - params.heads) * params.k_head;
  } else {
    to = static_cast<T*>(params.v_cache) + batch * params.v_batch + position * params.v_token +
         (head - params.heads - params.kv_heads) * params.v_head;
  }
  if (!is_v) {
    const bool normed = norm != nullptr;
    const float factor = normed ? rsqrtf(squares / params.head_dim + params.eps) : 1.0f;
    const int dtype = is_q ? params.q_norm_dtype : params.k_norm_dtype;
    const int64_t angle = position * params.head_dim + 2 * kRopePairs * lane;
#pragma unroll
    for (int i = 0; i < kRopePairs; ++i) {
      if (normed) {
        const auto channel = [&](int second) {
          return Pairs<T, kInterleaved>::channel(lane, i, second, params.head_dim);
        };
        a[i] *= factor * load_value(norm, channel(0), dtype);
        b[i] *= factor * load_value(norm, channel(1), dtype);
      }
      const float cos = load_value(params.freqs, angle + 2 * i, params.freqs_dtype);
      const float sin = load_value(params.freqs, angle + 2 * i + 1, params.freqs_dtype);
      rotate_pair(a[i], b[i], cos, sin);
      pairs.member(i, 0) = from_float<T>(a[i]);
      pairs.member(i, 1) = from_float<T>(b[i]);
    }
  }
  pairs.store(to, lane, params.head_dim);
}

}  // namespace bdk
