// bit_counts: entry, how a matrix of bytes is cut into columns, choice of the instruction set.
#include "cpu/bit_counts/bit_counts.h"

#include <numeric>

#include "bitdance_kernels.h"
#include "cpu/common/isa.h"
#include "cpu/common/parallel.h"

namespace bdk {
namespace {

// Bytes a thread must have to be worth starting: about 10 us.
constexpr int64_t kGrainBytes = 131072;
constexpr int64_t kMaxVector = 64;
// Bytes read between two visits to the same cache line should stay in the second-level cache.
constexpr int64_t kCacheBytes = 262144;

struct Kernel {
  CountColumn count;
  int64_t vector;  // bytes
};

Kernel choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return {count_column_avx512, 64};
  if (active_isa() == kAvx2) return {count_column_avx2, 32};
#endif
  return {count_column<uint64_t>, 8};
}

// Threads add their counts to one array; integer sums do not depend on the order.
void add(int64_t* count, int64_t value) { __atomic_fetch_add(count, value, __ATOMIC_RELAXED); }

void count_bytes(const uint8_t* data, int64_t bytes, int64_t width, int64_t* counts) {
  for (int64_t i = 0; i < bytes; ++i) {
    for (int j = 0; j < 8; ++j) {
      if ((data[i] >> j) & 1) add(counts + i % width * 8 + j, 1);
    }
  }
}

}  // namespace
}  // namespace bdk

int bdk_bit_counts_cpu(const uint8_t* packed, int64_t* counts, int64_t rows, int64_t row_bytes,
                       int threads) {
  using namespace bdk;
  if (rows < 0 || row_bytes <= 0 || threads < 1) return BDK_BAD_SIZE;
  for (int64_t c = 0; c < 8 * row_bytes; ++c) counts[c] = 0;
  const Kernel kernel = choose();
  // Several rows taken as one row of a whole number of vectors (least common multiple).
  const int64_t line = std::lcm(row_bytes, kernel.vector);
  const int64_t lines = rows * row_bytes / line;
  int64_t block = kCacheBytes / line / 16 * 16;
  block = block < 64 ? 64 : block > kMaxRows ? kMaxRows : block;
  parallel_for(lines, kGrainBytes / line + 1, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += block) {
      const int64_t some = end - first < block ? end - first : block;
      for (int64_t column = 0; column < line; column += kernel.vector) {
        uint32_t found[8 * kMaxVector] = {};
        kernel.count(packed + first * line + column, some, line, found);
        for (int64_t k = 0; k < kernel.vector; ++k) {
          int64_t* channel = counts + (column + k) % row_bytes * 8;
          for (int j = 0; j < 8; ++j) add(channel + j, found[8 * k + j]);
        }
      }
    }
  });
  count_bytes(packed + lines * line, rows * row_bytes - lines * line, row_bytes, counts);
  return BDK_OK;
}
