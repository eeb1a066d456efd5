// The device code of flip_bits and flip_signs on the CPU.
#include "card.h"
//
template <class T>
T __ldg(const T* at) {
  return *at;
}
#include "cuda/flip_bits/flip_bits.cuh"

// As bdk_flip_bits_cuda, by `blocks` blocks.
extern "C" void flip_bits(const uint8_t* packed, uint8_t* flipped, int64_t bytes,
                          const int64_t* key, int64_t threshold, int vector, int64_t blocks) {
  using namespace bdk;
  const FlipParams params{packed, flipped, bytes, key, threshold};
  emulated::launch(blocks, kFlipThreads, false, [&] {
    vector != 0 ? flip_bits_kernel<true>(params) : flip_bits_kernel<false>(params);
  });
}

// As bdk_flip_signs_cuda.
extern "C" void flip_signs(const void* x, void* y, int64_t values, const int64_t* key,
                           int64_t threshold, int wide, int64_t blocks) {
  using namespace bdk;
  const FlipParams params{x, y, values / 8, key, threshold};
  emulated::launch(blocks, kFlipThreads, false, [&] {
    wide != 0 ? flip_signs_kernel<uint32_t, true>(params)
              : flip_signs_kernel<uint16_t, true>(params);
  });
}
