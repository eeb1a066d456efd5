// A GPU emulated on the CPU: what device code calls, on the threads of scheduler.h, where every
// operation of a warp, a block or a cluster is a barrier. Include it before device code, with this
// folder before csrc in the include path, so that cuda/common/mma.cuh is the one beside it.
//
// Compiled with -fsanitize=thread, the fibers are threads to the sanitizer, which finds memory that
// is read and written without a barrier in between, in whatever order the fibers run. As in CUDA's
// memory model, __syncthreads and __syncwarp order memory; exchanges between lanes do not.
#pragma once

#include <stdint.h>
#include <string.h>

#include <cmath>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
using std::fmaf;
using std::fmaxf;

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }

struct alignas(8) uint2 {
  uint32_t x, y;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
struct alignas(8) float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline uint32_t __float_as_uint(float x) {
  uint32_t word;
  memcpy(&word, &x, 4);
  return word;
}
inline float __uint_as_float(uint32_t word) {
  float x;
  memcpy(&x, &word, 4);
  return x;
}

// The bytes of a word that the digits of `selector` name: 0 to 3 are those of x, 4 to 7 of y.
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    word |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
  }
  return word;
}

#include "scheduler.h"

struct ThreadIndex {
  struct {
    operator unsigned int() const {
      return emulated::machine.running % emulated::machine.block_threads;
    }
  } x;
};
inline ThreadIndex threadIdx;

struct BlockIndex {
  struct {
    operator unsigned int() const {
      return emulated::machine.first_block + emulated::block_of_cluster();
    }
  } x;
};
inline BlockIndex blockIdx;

struct {
  unsigned int x = 0;
} inline gridDim;

inline void __syncthreads() { emulated::order(emulated::block().all); }
inline void __syncwarp() { emulated::order(emulated::machine.warps[emulated::warp()]); }

// All have left the vote before the last, whose place is made free for the next one.
inline int __syncthreads_or(int vote) {
  const int at = emulated::thread().votes++;
  int (&votes)[3] = emulated::block().votes;
  votes[(at + 1) % 3] = 0;
  votes[at % 3] |= vote;
  __syncthreads();
  return votes[at % 3];
}

template <class T>
T __shfl_sync(uint32_t, T value, int source) {
  return emulated::exchange(value, [&](const auto& given) { return given[source]; });
}

template <class T>
T __shfl_xor_sync(uint32_t, T value, int mask) {
  return __shfl_sync(0, value, emulated::lane() ^ mask);
}

namespace emulated {

// Seed of the order of blocks and threads in launches without clusters; 0 for the one they name.
inline uint32_t order_seed = 0;

// Runs `kernel` on `blocks` blocks of `threads` threads, one block after the other, undisturbed
// but for `order_seed`. `backward`: the threads run in descending order, so that another one is the
// first at every barrier.
inline void launch(unsigned int blocks, int threads, bool backward, std::function<void()> kernel) {
  machine.kernel = std::move(kernel);
  machine.disturbed = order_seed != 0;
  machine.random = (order_seed + 1) * 2654435761u;
  machine.turn = 0;
  gridDim.x = blocks;
  std::vector<unsigned int> order(blocks);
  for (unsigned int b = 0; b < blocks; ++b) {
    order[b] = b;
    if (machine.disturbed) std::swap(order[b], order[random_below(b + 1)]);
  }
  for (unsigned int b : order) run_cluster(static_cast<int>(b), 1, threads, 0, backward);
}

// Runs `kernel` on `blocks` blocks of `threads` threads with `shared_bytes` of shared memory each,
// `cluster` of them at once, under the adversaries of `seed`. Returns null, or what went wrong.
// Inputs of this launch that the kernel before it writes were named with late_input.
[[nodiscard]] inline const char* launch_clusters(int blocks, int cluster, int threads,
                                                 size_t shared_bytes, uint32_t seed,
                                                 std::function<void()> kernel) {
  machine.kernel = std::move(kernel);
  machine.disturbed = true;
  machine.random = (seed + 1) * 2654435761u;  // not 0
  machine.turn = 0;
  gridDim.x = blocks;
  const char* message = nullptr;
  for (int b = 0; b < blocks && message == nullptr; b += cluster) {
    message = run_cluster(b, cluster, threads, shared_bytes, false);
  }
  late_inputs.clear();
  return message;
}

}  // namespace emulated

// For Python: see order_seed.
extern "C" __attribute__((used)) inline void set_order(uint32_t seed) {
  emulated::order_seed = seed;
}
