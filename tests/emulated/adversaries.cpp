// Small kernels that show what each adversary of scheduler.h finds.
#include <string>

#include "card.h"
//
#include "cuda/common/machine_sm90.cuh"

namespace bdk {

struct AdversaryParams {
  uint4* words;
  const float* input;
  float* y;
  bool right;  // else the kernel has a fault
};

// A thread reads what its neighbour has written.
inline void neighbour_kernel(const AdversaryParams& p) {
  BDK_SHARED_BYTES(memory);
  float* values = reinterpret_cast<float*>(memory);
  values[threadIdx.x] = threadIdx.x;
  if (p.right) __syncthreads();
  p.y[threadIdx.x] = values[(threadIdx.x + 1) % 64];
}

// Block 0 writes a value, then a flag; block 1 waits for the flag.
inline void message_kernel(const AdversaryParams& p) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
    store_relaxed(&p.words[0], make_uint4(7, 0, 0, 0));
    if (p.right) fence_gpu();
    store_relaxed(&p.words[1], make_uint4(1, 0, 0, 0));
    p.y[0] = load_relaxed(&p.words[0]).x;  // its own store, at once
  } else {
    while (load_relaxed(&p.words[1]).x != 1) continue;
    p.y[1] = load_relaxed(&p.words[0]).x;
  }
}

// Thread 33 fences the store of thread 0, which a barrier orders before the fence.
inline void handed_over_kernel(const AdversaryParams& p) {
  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) store_relaxed(&p.words[0], make_uint4(7, 0, 0, 0));
    if (p.right) __syncthreads();
    if (threadIdx.x != 33) {
      if (threadIdx.x == 0 && !p.right) load_relaxed(&p.words[0]);
      return;
    }
    fence_gpu();
    p.y[0] = p.right ? load_relaxed(&p.words[0]).x : 7;
    store_relaxed(&p.words[1], make_uint4(1, 0, 0, 0));
  } else if (threadIdx.x == 0) {
    while (load_relaxed(&p.words[1]).x != 1) continue;
    p.y[1] = load_relaxed(&p.words[0]).x;
  }
}

// Block 0 writes 1, 2, 3 to one word; block 1 waits for 3. The fault: it waits for 1, which may
// have been written over by then.
inline void overwritten_kernel(const AdversaryParams& p) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
    for (uint32_t i = 1; i <= 3; ++i) {
      store_relaxed(&p.words[0], make_uint4(i, 0, 0, 0));
      for (int k = 0; k < 20; ++k) load_relaxed(&p.words[1]);
    }
    p.y[0] = 7;
  } else {
    while (load_relaxed(&p.words[0]).x != (p.right ? 3 : 1)) continue;
    p.y[1] = 7;
  }
}

// Every block of a cluster gives its number to the next. The faults: before that one has begun, or
// without waiting for what it was given.
template <bool kBegun, bool kGiven>
void cluster_kernel(const AdversaryParams& p) {
  BDK_SHARED_BYTES(memory);
  if (p.right || kBegun) {
    cluster_arrive_relaxed();
    cluster_wait();
  }
  if (threadIdx.x == 0) {
    store_to_block(memory, (cluster_rank() + 1) % 4, make_float4(blockIdx.x, 0, 0, 0));
  }
  if (p.right || kGiven) {
    cluster_sync();
  } else {
    cluster_arrive_relaxed();
    cluster_wait();
  }
  if (threadIdx.x == 0) p.y[blockIdx.x] = *reinterpret_cast<float*>(memory);
}

// A warp reads what another one writes over a good while later.
inline void kept_kernel(const AdversaryParams& p) {
  BDK_SHARED_BYTES(memory);
  float* values = reinterpret_cast<float*>(memory);
  values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  for (int k = 0; k < 60; ++k) __syncwarp();
  p.y[threadIdx.x] = values[threadIdx.x % 32];
  if (p.right) __syncthreads();
  if (threadIdx.x >= 32) return;
  for (int k = 0; k < 20; ++k) __syncwarp();
  values[threadIdx.x] = -1;
}

// One thread reads the input before the kernel that writes it has ended, the others do not.
inline void early_kernel(const AdversaryParams& p) {
  float input = p.input[threadIdx.x];
  if (p.right || threadIdx.x != 40) {
    wait_for_previous();
    input = p.input[threadIdx.x];
  }
  p.y[threadIdx.x] = input;
}

// A flag that nobody sets, or a barrier that one thread misses.
inline void stuck_kernel(const AdversaryParams& p) {
  if (p.right) {
    while (load_relaxed(&p.words[0]).x != 1) continue;
  } else if (threadIdx.x != 5) {
    __syncthreads();
  } else {
    cluster_sync();
  }
}

}  // namespace bdk

// What went wrong in a launch of `kernel`, or null.
extern "C" const char* adversary(const char* kernel, const float* input, float* y, int right,
                                 uint32_t seed, int late_stores, int sleeping) {
  using namespace bdk;
  uint4 words[2] = {};
  const AdversaryParams params{words, input, y, right != 0};
  const std::string name = kernel;
  const auto run = [&](auto device_code, int blocks, int cluster) {
    return emulated::launch_clusters(blocks, cluster, 64, 256, seed, [&] { device_code(params); });
  };
  emulated::max_turns = 20000;
  emulated::adversaries = {late_stores != 0, sleeping != 0};
  if (name == "neighbour") return run(neighbour_kernel, 1, 1);
  if (name == "kept") return run(kept_kernel, 2, 2);
  if (name == "message") return run(message_kernel, 2, 2);
  if (name == "handed over") return run(handed_over_kernel, 2, 2);
  if (name == "overwritten") return run(overwritten_kernel, 2, 2);
  if (name == "not begun") return run(cluster_kernel<false, true>, 8, 4);
  if (name == "not given") return run(cluster_kernel<true, false>, 8, 4);
  if (name == "stuck") return run(stuck_kernel, 2, 2);
  emulated::late_input(input, 64 * sizeof(float));
  return run(early_kernel, 2, 1);
}
