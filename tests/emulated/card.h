// A GPU emulated on the CPU. The threads of a block are fibers: one runs at a time, and every
// operation of a warp or a block is a barrier for them. Include it before device code, with this
// folder before csrc in the include path, so that cuda/common/mma.cuh is the one beside it.
//
// Compiled with -fsanitize=thread, the fibers are threads to the sanitizer, which finds memory that
// is read and written without a barrier in between, in whatever order the fibers run. As in CUDA's
// memory model, __syncthreads and __syncwarp order memory; exchanges between lanes do not.
#pragma once

#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

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

// A barrier for `count` fibers.
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

// Annotations for the sanitizer: which thread runs from here on, and what happens before what.
#ifdef __SANITIZE_THREAD__
inline void* scheduler_thread;
inline std::vector<void*> threads;

inline void begin_threads(int count) {
  scheduler_thread = __tsan_get_current_fiber();
  for (void* thread : threads) __tsan_destroy_fiber(thread);
  threads.assign(count, nullptr);
  for (void*& thread : threads) thread = __tsan_create_fiber(0);
}
// Not instrumented: another thread leaves such a function than entered it.
#define NOT_INSTRUMENTED __attribute__((no_sanitize("thread")))
NOT_INSTRUMENTED inline void run_as_thread(int i) {
  __tsan_switch_to_fiber(threads[i], __tsan_switch_to_fiber_no_sync);
}
NOT_INSTRUMENTED inline void run_as_scheduler() {
  __tsan_switch_to_fiber(scheduler_thread, __tsan_switch_to_fiber_no_sync);
}
inline void before(void* event) { __tsan_release(event); }
inline void after(void* event) { __tsan_acquire(event); }
#else
#define NOT_INSTRUMENTED
inline void begin_threads(int) {}
inline void run_as_thread(int) {}
inline void run_as_scheduler() {}
inline void before(void*) {}
inline void after(void*) {}
#endif

inline void yield() {
  run_as_scheduler();
  swapcontext(&block.fibers[block.running], &block.scheduler);
}

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

// Every lane gives a value and gets those of its warp.
template <class T, class Read>
auto exchange(const T& value, Read read) {
  static std::vector<std::vector<T>> given;
  if (given.size() < block.warps.size()) given.resize(block.warps.size());
  if (given[warp()].size() < 32) given[warp()].resize(32);
  given[warp()][lane()] = value;
  meet(block.warps[warp()]);
  std::vector<T> seen(32);
  for (int i = 0; i < 32; ++i) seen[i] = given[warp()][i];
  auto result = read(seen);
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

namespace emulated {

// A barrier that orders memory: everything before it, in any thread, happens before everything
// after.
inline void order(Barrier& barrier) {
  before(&barrier);
  meet(barrier);
#ifdef __SANITIZE_THREAD__
  after(&barrier);
  meet(barrier);  // so that no fiber reaches the next barrier before all have left this one
#endif
}

}  // namespace emulated

inline void __syncthreads() { emulated::order(emulated::block.all); }
inline void __syncwarp() { emulated::order(emulated::block.warps[emulated::warp()]); }

inline float __shfl_sync(uint32_t, float value, int source) {
  return emulated::exchange(value, [&](const auto& given) { return given[source]; });
}

inline float __shfl_xor_sync(uint32_t, float value, int mask) {
  const int source = emulated::lane() ^ mask;
  return __shfl_sync(0, value, source);
}

namespace emulated {

NOT_INSTRUMENTED inline void run_fiber() {
  block.kernel();
  block.done[block.running] = true;
  before(&block);  // before the next block
  run_as_scheduler();
}

// Runs `kernel` on `blocks` blocks of `threads` threads. `backward`: the fibers run in descending
// order, so that another thread is the first at every barrier.
inline void launch(unsigned int blocks, int threads, bool backward, std::function<void()> kernel) {
  constexpr size_t kStack = 1 << 18;  // the sanitizer's reports need space
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
    begin_threads(threads);
    for (int t = 0; t < threads; ++t) {
      getcontext(&block.fibers[t]);
      block.fibers[t].uc_stack.ss_sp = block.stacks[t].get();
      block.fibers[t].uc_stack.ss_size = kStack;
      block.fibers[t].uc_link = &block.scheduler;
      makecontext(&block.fibers[t], run_fiber, 0);
    }
    for (int left = threads; left > 0;) {
      left = 0;
      for (int i = 0; i < threads; ++i) {
        block.running = backward ? threads - 1 - i : i;
        if (block.done[block.running]) continue;
        ++left;
        run_as_thread(block.running);
        swapcontext(&block.scheduler, &block.fibers[block.running]);
      }
    }
    after(&block);
  }
}

}  // namespace emulated
