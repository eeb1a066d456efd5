// hamming_distance and nearest_codes: entries, scalar loops, choice of the instruction set.
#include "cpu/hamming_distance.h"

#include "bitdance_kernels.h"
#include "cpu/isa.h"
#include "cpu/pages.h"
#include "cpu/parallel.h"

namespace bdk {
namespace {

// Words compared by a thread to be worth its start: about 10 us.
constexpr int64_t kGrainWords = 32768;

struct ScalarEight {
  struct Values {
    int32_t value[kBlock];
  };

  static Values distances(const uint64_t* a, const uint64_t* block, int64_t words) {
    Values sums = {};
    for (int64_t w = 0; w < words; ++w) {
      for (int i = 0; i < kBlock; ++i) {
        sums.value[i] += __builtin_popcountll(a[w] ^ block[kBlock * w + i]);
      }
    }
    return sums;
  }

  static void store(const Values& values, int32_t* out) {
    for (int i = 0; i < kBlock; ++i) out[i] = values.value[i];
  }

  static uint32_t below(const Values& values, int32_t limit) {
    uint32_t mask = 0;
    for (int i = 0; i < kBlock; ++i) mask |= (values.value[i] < limit ? 1u : 0u) << i;
    return mask;
  }
};

constexpr HammingRows kScalarRows = {distance_row<ScalarEight>, nearest_rows<ScalarEight>};

const HammingRows& choose() {
#ifdef BDK_X86
  static const bool vpopcnt = __builtin_cpu_supports("avx512vpopcntdq");
  if (active_isa() == kAvx512) return vpopcnt ? kHammingVpopcnt : kHammingAvx512;
  if (active_isa() == kAvx2) return kHammingAvx2;
#endif
  return kScalarRows;
}

int64_t grain_rows(int64_t codes, int64_t words) { return kGrainWords / (codes * words + 1) + 1; }

int64_t blocks_of(int64_t codes) { return (codes + kBlock - 1) / kBlock; }

}  // namespace
}  // namespace bdk

int bdk_hamming_distance_cpu(const uint64_t* a, const uint64_t* b_blocks, int32_t* distance,
                             int64_t queries, int64_t codes, int64_t words, int threads) {
  using namespace bdk;
  if (queries < 0 || codes < 0 || words <= 0 || threads < 1) return BDK_BAD_SIZE;
  prefer_large_pages(distance, 4 * queries * codes);
  const HammingRows& kernel = choose();
  // A chunk of the codes stays in the second-level cache while the rows of a thread pass by it.
  const int64_t chunk = (262144 / (8 * kBlock * words) + 1) * kBlock;
  parallel_for(queries, grain_rows(codes, words), 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t first = 0; first < codes; first += chunk) {
      const int64_t some = codes - first < chunk ? codes - first : chunk;
      for (int64_t n = begin; n < end; ++n) {
        kernel.distance(a + n * words, b_blocks + first * words, words, some,
                        distance + n * codes + first);
      }
    }
  });
  return BDK_OK;
}

int bdk_nearest_codes_cpu(const uint64_t* a, const uint64_t* b_blocks, int64_t* index,
                          int32_t* distance, int64_t queries, int64_t codes, int64_t words,
                          int64_t k, int threads) {
  using namespace bdk;
  if (queries < 0 || words <= 0 || k < 1 || k > codes || threads < 1) return BDK_BAD_SIZE;
  if (k > kMostNeighbours || codes > int64_t{1} << kIndexBits) return BDK_BAD_SIZE;
  const HammingRows& kernel = choose();
  parallel_for(queries, grain_rows(blocks_of(codes) * kBlock, words), kGroup, threads,
               [&](int64_t begin, int64_t end) {
                 for (int64_t n = begin; n < end; n += kGroup) {
                   const int some = end - n < kGroup ? static_cast<int>(end - n) : kGroup;
                   kernel.nearest(a + n * words, some, b_blocks, words, codes, k, index + n * k,
                                  distance + n * k);
                 }
               });
  return BDK_OK;
}
