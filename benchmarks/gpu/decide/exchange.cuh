// Ways to exchange data between the blocks of a running kernel, or from a kernel to the next, each
// repeated for as many rounds as a card needs to be timed. Every round checks what it has received,
// and gives up after so many looks, so that a fault ends in a status and hangs nothing.
#pragma once

#include "cuda/common/machine_sm90.cuh"

namespace bdk {

constexpr int kExchangeThreads = 256;
constexpr int kRing = 8, kAhead = 4;  // slots of words; how early a slot is wiped
constexpr int kClusterWords = 128;    // of 16 bytes, that a block gives to its neighbour

enum ExchangeFault { kHung = 0, kWrong = 1, kExchangeFaults = 2 };

struct ExchangeParams {
  uint4* words;  // [kRing][count], all ones before the launch
  int count;     // words that the blocks exchange in a round
  int rounds;
  int looks;    // at a word that is not there, before a thread gives up
  int* faults;  // [kExchangeFaults], zeros before the launch
};

__device__ inline uint4 exchange_word(int round, int word) {
  return make_uint4(static_cast<uint32_t>(round), static_cast<uint32_t>(word),
                    static_cast<uint32_t>(round ^ word), 0);
}

__device__ inline bool equal(const uint4& a, const uint4& b) {
  return a.x == b.x && a.y == b.y && a.z == b.z && a.w == b.w;
}

__device__ inline bool is_there(const uint4& word) {
  return word.x != ~0u && word.y != ~0u && word.z != ~0u && word.w != ~0u;
}

// Words that are their own flag: each block writes its share of the words of a round and then reads
// all of them. The slot of four rounds later is wiped before; whoever has come this far has read
// what it holds.
__device__ inline void exchange_words(const ExchangeParams& p, int* failed) {
  const int thread = static_cast<int>(threadIdx.x);
  const int own = static_cast<int>(blockIdx.x) + thread * static_cast<int>(gridDim.x);
  if (thread == 0) *failed = 0;
  __syncthreads();
  for (int round = 0; round < p.rounds && *failed == 0; ++round) {
    uint4* slot = p.words + int64_t{round % kRing} * p.count;
    if (own < p.count) {
      store_relaxed(slot + own, exchange_word(round, own));
      uint4* later = p.words + int64_t{(round + kAhead) % kRing} * p.count;
      store_relaxed(later + own, make_uint4(~0u, ~0u, ~0u, ~0u));
      fence_gpu();
    }
    for (int word = thread; word < p.count; word += kExchangeThreads) {
      uint4 seen = load_relaxed(slot + word);
      for (int look = 0; !is_there(seen) && look < p.looks; ++look)
        seen = load_relaxed(slot + word);
      if (!equal(seen, exchange_word(round, word))) {
        *failed = 1;
        p.faults[is_there(seen) ? kWrong : kHung] = 1;
        break;
      }
    }
    __syncthreads();
  }
}

// The shared memory of a cluster: each block gives its words to the next one, behind one barrier.
__device__ inline void exchange_cluster(const ExchangeParams& p, int size, uint4* received) {
  const int thread = static_cast<int>(threadIdx.x);
  const uint32_t rank = cluster_rank(), next = (rank + 1) % static_cast<uint32_t>(size);
  const uint32_t before = (rank + static_cast<uint32_t>(size) - 1) % static_cast<uint32_t>(size);
  cluster_sync();  // all blocks have begun
  for (int round = 0; round < p.rounds; ++round) {
    uint4* mine = received + round % 2 * kClusterWords;
    if (thread < kClusterWords) {
      const float value = static_cast<float>(round * 16) + static_cast<float>(rank);
      store_to_block(mine + thread, next, make_float4(value, value, value, value));
    }
    cluster_sync();
    if (thread < kClusterWords) {
      const float expected = static_cast<float>(round * 16) + static_cast<float>(before);
      if (__uint_as_float(mine[thread].w) != expected) p.faults[kWrong] = 1;
    }
  }
  cluster_sync();  // no block ends while another one stores into it
}

// A kernel of a chain: each thread increments its counter, which the kernel before has written.
__device__ inline void exchange_chain(uint32_t* counters) {
  launch_dependents();
  wait_for_previous();
  counters[blockIdx.x * kExchangeThreads + threadIdx.x] += 1;
}

}  // namespace bdk
