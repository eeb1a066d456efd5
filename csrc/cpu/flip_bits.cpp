// flip_bits and flip_signs: entries, choice of the instruction set.
#include "cpu/flip_bits.h"

#include "bitdance_kernels.h"
#include "common/dtype.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace bdk {
namespace {

// Bytes a thread must have to be worth starting: about 10 us.
constexpr int64_t kGrainBytes = 2048;

FlipLanes choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return flip_lanes_avx512;
  if (active_isa() == kAvx2) return flip_lanes_avx2;
#endif
  return flip_lanes;
}

FlipKey flip_key(const int64_t* key, int64_t threshold) {
  const uint64_t seed = static_cast<uint64_t>(key[0]);
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
          static_cast<uint32_t>(key[1]), static_cast<uint32_t>(threshold)};
}

// use(i, flips, count) gets the flips of bytes i .. i + count - 1.
template <class Use>
void for_all_flips(FlipKey key, int64_t bytes, int threads, const Use& use) {
  const FlipLanes draw = choose();
  parallel_for(bytes, kGrainBytes, kFlipLanes, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kFlipLanes) {
      uint8_t flips[kFlipLanes];
      draw(key, i, flips);
      use(i, flips, end - i < kFlipLanes ? static_cast<int>(end - i) : kFlipLanes);
    }
  });
}

template <class Pattern>
void negate(const Pattern* x, Pattern* y, const uint8_t* flips, int bytes) {
  constexpr int kSignBit = 8 * sizeof(Pattern) - 1;
  for (int i = 0; i < bytes; ++i) {
    for (int j = 0; j < 8; ++j) {
      const Pattern bit = static_cast<Pattern>((flips[i] >> j) & 1);
      y[8 * i + j] = static_cast<Pattern>(x[8 * i + j] ^ static_cast<Pattern>(bit << kSignBit));
    }
  }
}

}  // namespace
}  // namespace bdk

int bdk_flip_bits_cpu(const uint8_t* packed, uint8_t* flipped, int64_t bytes, const int64_t* key,
                      int64_t threshold, int threads) {
  using namespace bdk;
  if (bytes < 0 || threshold < 0 || threshold > 32768 || threads < 1) return BDK_BAD_SIZE;
  for_all_flips(flip_key(key, threshold), bytes, threads,
                [=](int64_t first, const uint8_t* flips, int count) {
                  for (int i = 0; i < count; ++i) flipped[first + i] = packed[first + i] ^ flips[i];
                });
  return BDK_OK;
}

int bdk_flip_signs_cpu(const void* x, void* y, int64_t values, const int64_t* key,
                       int64_t threshold, int dtype, int threads) {
  using namespace bdk;
  if (!is_dtype(dtype)) return BDK_BAD_DTYPE;
  if (values < 0 || values % 8 != 0 || threshold < 0 || threshold > 32768 || threads < 1) {
    return BDK_BAD_SIZE;
  }
  const auto use = [&](auto* from, auto* to) {
    for_all_flips(flip_key(key, threshold), values / 8, threads,
                  [=](int64_t first, const uint8_t* flips, int count) {
                    negate(from + 8 * first, to + 8 * first, flips, count);
                  });
  };
  if (dtype == kFloat32) {
    use(static_cast<const uint32_t*>(x), static_cast<uint32_t*>(y));
  } else {
    use(static_cast<const uint16_t*>(x), static_cast<uint16_t*>(y));
  }
  return BDK_OK;
}
