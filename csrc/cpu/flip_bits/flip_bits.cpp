// flip_bits and flip_signs: entries, scalar loops, choice of the instruction set.
#include "cpu/flip_bits/flip_bits.h"

#include "bitdance_kernels.h"
#include "common/dtype.h"
#include "cpu/common/isa.h"
#include "cpu/common/pages.h"
#include "cpu/common/parallel.h"

namespace bdk {
namespace {

// Bytes a thread must have to be worth starting: about 10 us.
constexpr int64_t kGrainBytes = 4096;

void draw(FlipKey key, uint64_t first, uint8_t* flips) {
  for (int i = 0; i < kFlipLanes; ++i) {
    flips[i] = static_cast<uint8_t>(flips_of_byte(key, first + static_cast<uint64_t>(i)));
  }
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

constexpr FlipLoops kFlipScalar = {draw, negate<uint32_t>, negate<uint16_t>};

const FlipLoops& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kFlipAvx512;
  if (active_isa() == kAvx2) return kFlipAvx2;
#endif
  return kFlipScalar;
}

// Calls use(i, flips, count) with the flips of bytes i .. i + count - 1, counted from byte `first`.
template <class Use>
void for_all_flips(const FlipLoops& loops, FlipKey key, int64_t first, int64_t bytes, int threads,
                   const Use& use) {
  parallel_for(bytes, kGrainBytes, kFlipLanes, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kFlipLanes) {
      uint8_t flips[kFlipLanes];
      loops.draw(key, static_cast<uint64_t>(first + i), flips);
      use(i, flips, end - i < kFlipLanes ? static_cast<int>(end - i) : kFlipLanes);
    }
  });
}

}  // namespace
}  // namespace bdk

int bdk_flip_bits_cpu(const uint8_t* packed, uint8_t* flipped, int64_t bytes, int64_t first,
                      const int64_t* key, int64_t threshold, int threads) {
  using namespace bdk;
  if (bytes < 0 || first < 0 || threshold < 0 || threshold > kMaxFlipThreshold || threads < 1)
    return BDK_BAD_SIZE;
  prefer_large_pages(flipped, bytes);
  for_all_flips(choose(), flip_key(key, threshold), first, bytes, threads,
                [=](int64_t at, const uint8_t* flips, int count) {
                  for (int i = 0; i < count; ++i) flipped[at + i] = packed[at + i] ^ flips[i];
                });
  return BDK_OK;
}

int bdk_flip_signs_cpu(const void* x, void* y, int64_t values, const int64_t* key,
                       int64_t threshold, int dtype, int threads) {
  using namespace bdk;
  if (!is_dtype(dtype)) return BDK_BAD_DTYPE;
  if (values < 0 || values % 8 != 0 || threshold < 0 || threshold > kMaxFlipThreshold ||
      threads < 1) {
    return BDK_BAD_SIZE;
  }
  prefer_large_pages(y, values * (dtype == kFloat32 ? 4 : 2));
  const FlipLoops& loops = choose();
  const auto negate_all = [&](auto* from, auto* to, auto negate) {
    for_all_flips(loops, flip_key(key, threshold), 0, values / 8, threads,
                  [=](int64_t first, const uint8_t* flips, int count) {
                    negate(from + 8 * first, to + 8 * first, flips, count);
                  });
  };
  if (dtype == kFloat32) {
    negate_all(static_cast<const uint32_t*>(x), static_cast<uint32_t*>(y), loops.negate_32);
  } else {
    negate_all(static_cast<const uint16_t*>(x), static_cast<uint16_t*>(y), loops.negate_16);
  }
  return BDK_OK;
}
