// What kernels for sm_90 and later ask of the card: programmatic dependent launch, clusters and
// their shared memory, weights that are read once, words that blocks exchange while they run.
#pragma once

#include <stdint.h>

#include "cuda/common/load_store.cuh"
#include "cuda/common/mma.cuh"

// The dynamic shared memory of the block.
#define BDK_SHARED_BYTES(name) extern __shared__ __align__(16) unsigned char name[]

namespace bdk {

// Waits until the kernel before this one in the stream has ended and its stores are visible. A
// launch without the programmatic attribute does not wait, as nothing is left to wait for.
__device__ inline void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the next kernel of the stream begin, once every block has called it or ended.
__device__ inline void launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// A barrier of the cluster in two halves that orders no memory: after the wait all blocks have
// begun, so that their shared memory may be written.
__device__ inline void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void cluster_wait() {
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

// A barrier of the cluster after which every block sees what the others have stored.
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Stores where `shared`, an address in this block's shared memory, lies in that of block `rank`.
__device__ inline void store_to_block(void* shared, uint32_t rank, float4 value) {
  const uint32_t own = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(own), "r"(rank));
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(value.x),
               "f"(value.y), "f"(value.z), "f"(value.w)
               : "memory");
}

// Constant memory that this block reads once. Volatile, so that it stands where it is written:
// before a wait.
__device__ inline uint4 load_weight(const uint4* at) {
  uint4 word;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
               : "l"(at));
  return word;
}
__device__ inline uint2 load_weight(const uint2* at) {
  uint2 word;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v2.u32 {%0, %1}, [%2];"
               : "=r"(word.x), "=r"(word.y)
               : "l"(at));
  return word;
}

// Words that other blocks read or write meanwhile, past the L1 cache: each 4 bytes are seen whole
// or not at all, and two stores in any order unless a fence stands between.
__device__ inline uint4 load_relaxed(const uint4* at) {
  uint4 word;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
               : "l"(at)
               : "memory");
  return word;
}
__device__ inline uint2 load_relaxed(const uint2* at) {
  uint2 word;
  asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(word.x), "=r"(word.y)
               : "l"(at)
               : "memory");
  return word;
}
__device__ inline void store_relaxed(uint4* at, uint4 word) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(word.x),
               "r"(word.y), "r"(word.z), "r"(word.w)
               : "memory");
}
__device__ inline void store_relaxed(uint2* at, uint2 word) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(at), "r"(word.x), "r"(word.y)
               : "memory");
}
__device__ inline void fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// Eight values of T in a word, the first in its lowest half.
template <class T>
__device__ inline void widen8(const uint4& word, float (&values)[8]) {
  const uint32_t pairs[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    alignas(4) T halves[2];
    *reinterpret_cast<uint32_t*>(halves) = pairs[i];
    values[2 * i] = to_float(halves[0]);
    values[2 * i + 1] = to_float(halves[1]);
  }
}
template <class T>
__device__ inline uint4 narrow8(const float (&values)[8]) {
  return make_uint4(pack_pair<T>(values[0], values[1]), pack_pair<T>(values[2], values[3]),
                    pack_pair<T>(values[4], values[5]), pack_pair<T>(values[6], values[7]));
}

}  // namespace bdk
