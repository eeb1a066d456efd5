// csrc/cuda/common/machine_sm90.cuh on the CPU.
#pragma once

#include "card.h"
#include "cuda/common/load_store.cuh"
#include "half.h"

#define BDK_SHARED_BYTES(name) \
  unsigned char* name = reinterpret_cast<unsigned char*>(emulated::block().shared.data())

namespace bdk {

inline void wait_for_previous() { emulated::wait_for_previous(); }
inline void launch_dependents() {}

inline uint32_t cluster_rank() { return emulated::block_of_cluster(); }
inline void cluster_arrive_relaxed() {
  emulated::thread().cluster_generation = emulated::arrive(emulated::machine.cluster);
}
inline void cluster_wait() {
  emulated::wait(emulated::machine.cluster, emulated::thread().cluster_generation);
}
inline void cluster_sync() { emulated::order(emulated::machine.cluster); }
inline void store_to_block(void* shared, uint32_t rank, float4 value) {
  emulated::store_late(emulated::at_block(shared, rank), &value, sizeof value);
}

template <class Word>
Word load_weight(const Word* at) {
  return *at;
}

template <class Word>
Word load_relaxed(const Word* at) {
  Word word;
  emulated::load_late(&word, at, sizeof word);
  return word;
}
template <class Word>
void store_relaxed(Word* at, Word word) {
  emulated::store_late(at, &word, sizeof word);
}
inline void fence_gpu() { emulated::fence(); }

template <class T>
void widen8(const uint4& word, float (&values)[8]) {
  T halves[8];
  memcpy(halves, &word, 16);
  for (int i = 0; i < 8; ++i) values[i] = to_float(halves[i]);
}
template <class T>
uint4 narrow8(const float (&values)[8]) {
  T halves[8];
  for (int i = 0; i < 8; ++i) halves[i] = from_float<T>(values[i]);
  uint4 word;
  memcpy(&word, halves, 16);
  return word;
}

}  // namespace bdk
