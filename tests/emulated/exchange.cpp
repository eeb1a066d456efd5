// The exchanges that benchmarks/gpu/decide times, on the CPU.
#include "card.h"
//
#include "../../benchmarks/gpu/decide/exchange.cuh"

// Words that are their own flag, all blocks at once: null, or what went wrong.
extern "C" const char* words(int blocks, int count, int rounds, int looks, uint32_t seed,
                             uint32_t* memory, int* faults) {
  const bdk::ExchangeParams p{reinterpret_cast<uint4*>(memory), count, rounds, looks, faults};
  return emulated::launch_clusters(blocks, blocks, bdk::kExchangeThreads, 16, seed, [p] {
    BDK_SHARED_BYTES(shared);
    bdk::exchange_words(p, reinterpret_cast<int*>(shared));
  });
}

extern "C" const char* cluster(int size, int rounds, uint32_t seed, int* faults) {
  const bdk::ExchangeParams p{nullptr, 0, rounds, 0, faults};
  constexpr int kBytes = 2 * bdk::kClusterWords * 16;
  return emulated::launch_clusters(2 * size, size, bdk::kExchangeThreads, kBytes, seed, [=] {
    BDK_SHARED_BYTES(shared);
    bdk::exchange_cluster(p, size, reinterpret_cast<uint4*>(shared));
  });
}

extern "C" const char* chain(int blocks, uint32_t seed, uint32_t* counters) {
  emulated::late_input(counters, sizeof(uint32_t) * bdk::kExchangeThreads * blocks);
  return emulated::launch_clusters(blocks, 1, bdk::kExchangeThreads, 0, seed,
                                   [=] { bdk::exchange_chain(counters); });
}
