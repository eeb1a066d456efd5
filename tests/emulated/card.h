// A card on the CPU, for kernels without a card: the threads of a block are fibers, one runs at a
// time, and every operation of a warp or a block makes them meet. Included before device code, and
// with this folder before csrc in the include path, so that cuda/mma.cuh is the one beside it.
#pragma once

#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __launch_bounds__(...)
using std::fmaxf;

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct Index {
  unsigned int x = 0;
};

namespace emulated {

// Where `count` fibers wait for each other.
struct Barrier {
  int count = 0, arrived = 0, generation = 0;
};

struct Block {
  std::vector<ucontext_t> fibers;
  std::vector<std::unique_ptr<char[]>> stacks;
  std::vector<bool> done;
  ucontext_t scheduler;
  int running = 0;
  std::function<void()> kernel;
  Barrier all;
  std::vector<Barrier> warps;
};

inline Block block;

inline void yield() { swapcontext(&block.fibers[block.running], &block.scheduler); }

inline void meet(Barrier& barrier) {
  const int generation = barrier.generation;
  if (++barrier.arrived == barrier.count) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
  while (generation == barrier.generation) yield();
}

inline int warp() { return block.running / 32; }
inline int lane() { return block.running % 32; }

// Every lane gives a value and sees those of its warp.
template <class T, class Read>
auto exchange(const T& value, Read read) {
  static std::vector<std::vector<T>> given;
  if (given.size() < block.warps.size()) given.resize(block.warps.size());
  if (given[warp()].size() < 32) given[warp()].resize(32);
  given[warp()][lane()] = value;
  meet(block.warps[warp()]);
  auto result = read(given[warp()]);
  meet(block.warps[warp()]);
  return result;
}

}  // namespace emulated

inline Index blockIdx;

struct ThreadIndex {
  struct {
    operator unsigned int() const { return emulated::block.running; }
  } x;
};
inline ThreadIndex threadIdx;

inline void __syncthreads() { emulated::meet(emulated::block.all); }
inline void __syncwarp() { emulated::meet(emulated::block.warps[emulated::warp()]); }

inline float __shfl_sync(uint32_t, float value, int source) {
  return emulated::exchange(value, [&](const auto& given) { return given[source]; });
}

inline float __shfl_xor_sync(uint32_t, float value, int mask) {
  const int source = emulated::lane() ^ mask;
  return __shfl_sync(0, value, source);
}

namespace emulated {

// Runs `kernel` on `blocks` blocks of `threads` threads; `backward`: the fibers take turns in
// falling order, so that another thread is the first at every barrier.
inline void launch(unsigned int blocks, int threads, bool backward, std::function<void()> kernel) {
  constexpr size_t kStack = 1 << 17;
  block.kernel = std::move(kernel);
  for (unsigned int b = 0; b < blocks; ++b) {
    blockIdx.x = b;
    block.fibers.resize(threads);
    while (static_cast<int>(block.stacks.size()) < threads) {
      block.stacks.emplace_back(new char[kStack]);
    }
    block.done.assign(threads, false);
    block.all = {threads, 0, 0};
    block.warps.assign(threads / 32, {32, 0, 0});
    for (int t = 0; t < threads; ++t) {
      getcontext(&block.fibers[t]);
      block.fibers[t].uc_stack.ss_sp = block.stacks[t].get();
      block.fibers[t].uc_stack.ss_size = kStack;
      block.fibers[t].uc_link = &block.scheduler;
      makecontext(
          &block.fibers[t],
          +[] {
            block.kernel();
            block.done[block.running] = true;
          },
          0);
    }
    for (int left = threads; left > 0;) {
      left = 0;
      for (int i = 0; i < threads; ++i) {
        block.running = backward ? threads - 1 - i : i;
        if (block.done[block.running]) continue;
        ++left;
        swapcontext(&block.scheduler, &block.fibers[block.running]);
      }
    }
  }
}

}  // namespace emulated
