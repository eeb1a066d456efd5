// hamming_distance and nearest_codes: entries, scalar loops, choice of the instruction set.
#include "cpu/hamming_distance/hamming_distance.h"

#include "bitdance_kernels.h"
#include "cpu/common/isa.h"
#include "cpu/common/pages.h"
#include "cpu/common/parallel.h"

namespace bdk {
namespace {

// Bytes of codes a thread must have to be worth starting: about 10 us.
constexpr int64_t kGrainBytes = int64_t{1} << 19;
// A chunk of the codes stays in the second-level cache while a thread compares all its queries.
constexpr int64_t kChunkBytes = int64_t{1} << 18;

struct ScalarBits {
  static uint8_t ones(uint32_t byte) {
    byte -= byte >> 1 & 0x55;
    byte = (byte & 0x33) + (byte >> 2 & 0x33);
    return static_cast<uint8_t>((byte + (byte >> 4)) & 0x0F);
  }

  template <int kQueries>
  using Queries = BytesOfQueries<kQueries>;

  template <int kQueries>
  static void count(const Queries<kQueries>& queries, const uint8_t* block, int64_t bytes,
                    Counts* counts) {
    for (int q = 0; q < kQueries; ++q) {
      const uint8_t* a = queries.a + q * queries.stride;
      counts[q] = {};
      for (int64_t b = 0; b < bytes; ++b) {
        uint8_t* part = counts[q].part[b % 2];
        for (int i = 0; i < kBlock; ++i) part[i] += ones(a[b] ^ block[kBlock * b + i]);
      }
    }
  }
};

constexpr HammingRows kScalarRows = hamming_rows<ScalarBits>();

const HammingRows& choose() {
#ifdef BDK_X86
  static const bool bitalg =
      __builtin_cpu_supports("avx512bitalg") && __builtin_cpu_supports("avx512vpopcntdq");
  if (active_isa() == kAvx512) return bitalg ? kHammingBitalg : kHammingAvx512;
  if (active_isa() == kAvx2) return kHammingAvx2;
#endif
  return kScalarRows;
}

int64_t grain_rows(int64_t codes, int64_t bytes) {
  return (kGrainBytes / (codes * bytes + 1) / kGroup + 1) * kGroup;
}

// Calls use(first query, whether it is a group of kGroup queries or one) for all of [begin, end).
template <class Use>
void for_groups(int64_t begin, int64_t end, const Use& use) {
  int64_t n = begin;
  for (; n + kGroup <= end; n += kGroup) use(n, 1);
  for (; n < end; ++n) use(n, 0);
}

}  // namespace
}  // namespace bdk

int bdk_hamming_distance_cpu(const uint8_t* a, const uint8_t* b_blocks, int32_t* distance,
                             int64_t queries, int64_t codes, int64_t bytes, int threads) {
  using namespace bdk;
  if (queries < 0 || codes < 0 || bytes <= 0 || threads < 1) return BDK_BAD_SIZE;
  prefer_large_pages(distance, 4 * queries * codes);
  const HammingRows& kernel = choose();
  const int64_t chunk = (kChunkBytes / (kBlock * bytes) + 1) * kBlock;
  parallel_for(queries, grain_rows(codes, bytes), kGroup, threads, [&](int64_t begin, int64_t end) {
    for (int64_t first = 0; first < codes; first += chunk) {
      const int64_t some = codes - first < chunk ? codes - first : chunk;
      for_groups(begin, end, [&](int64_t n, int group) {
        kernel.distance[group](a + n * bytes, b_blocks + first * bytes, bytes, some,
                               distance + n * codes + first, codes);
      });
    }
  });
  return BDK_OK;
}

int bdk_nearest_codes_cpu(const uint8_t* a, const uint8_t* b_blocks, int64_t* index,
                          int32_t* distance, int64_t queries, int64_t codes, int64_t bytes,
                          int64_t k, int threads) {
  using namespace bdk;
  if (queries < 0 || bytes <= 0 || k < 1 || k > codes || threads < 1) return BDK_BAD_SIZE;
  if (k > kMaxNeighbours || codes > int64_t{1} << kIndexBits) return BDK_BAD_SIZE;
  const HammingRows& kernel = choose();
  parallel_for(queries, grain_rows(codes, bytes), kGroup, threads, [&](int64_t begin, int64_t end) {
    for_groups(begin, end, [&](int64_t n, int group) {
      kernel.nearest[group](a + n * bytes, b_blocks, bytes, codes, k, index + n * k,
                            distance + n * k);
    });
  });
  return BDK_OK;
}

int bdk_code_blocks_cpu(const uint8_t* codes, int64_t stride, uint8_t* blocks, int64_t count,
                        int64_t bytes, int threads) {
  using namespace bdk;
  if (count < 0 || bytes <= 0 || threads < 1) return BDK_BAD_SIZE;
  const HammingRows& kernel = choose();
  const int64_t all = (count + kBlock - 1) / kBlock;
  parallel_for(all, kGrainBytes / (kBlock * bytes) + 1, 1, threads,
               [&](int64_t begin, int64_t end) {
                 const int64_t first = begin * kBlock;
                 const int64_t last = end * kBlock < count ? end * kBlock : count;
                 kernel.make_blocks(codes + first * stride, stride, bytes, last - first,
                                    blocks + first * bytes);
               });
  return BDK_OK;
}

int bdk_few_queries_cpu(int64_t bytes) { return bdk::choose().few_queries(bytes); }

int bdk_hamming_distance_few_cpu(const uint8_t* a, const uint8_t* codes, int64_t stride,
                                 int32_t* distance, int64_t queries, int64_t count, int64_t bytes,
                                 int threads) {
  using namespace bdk;
  if (queries < 0 || count < 0 || bytes <= 0 || threads < 1) return BDK_BAD_SIZE;
  prefer_large_pages(distance, 4 * queries * count);
  const HammingRows& kernel = choose();
  // A chunk stays in the second-level cache for all queries.
  const int64_t chunk = queries == 1 ? count : kChunkBytes / bytes + 1;
  parallel_for(count, kGrainBytes / (queries * bytes + 1) + 1, 64, threads,
               [&](int64_t begin, int64_t end) {
                 for (int64_t first = begin; first < end; first += chunk) {
                   const int64_t some = end - first < chunk ? end - first : chunk;
                   for (int64_t n = 0; n < queries; ++n) {
                     kernel.as_they_lie(a + n * bytes, codes + first * stride, stride, bytes, some,
                                        distance + n * count + first);
                   }
                 }
               });
  return BDK_OK;
}

int bdk_nearest_codes_few_cpu(const uint8_t* a, const uint8_t* codes, int64_t stride,
                              int64_t* index, int32_t* distance, int64_t queries, int64_t count,
                              int64_t bytes, int64_t k, int threads) {
  using namespace bdk;
  if (queries < 0 || bytes <= 0 || k < 1 || k > count || threads < 1) return BDK_BAD_SIZE;
  if (k > kMaxNeighbours || count > int64_t{1} << kIndexBits) return BDK_BAD_SIZE;
  const HammingRows& kernel = choose();
  parallel_for(queries, grain_rows(count, bytes), kGroup, threads, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n += kGroup) {
      kernel.nearest_as_they_lie(a + n * bytes, end - n < kGroup ? end - n : kGroup, codes, stride,
                                 bytes, count, k, index + n * k, distance + n * k);
    }
  });
  return BDK_OK;
}
