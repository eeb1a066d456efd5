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
// Lines after which 32-bit counts are added to the result.
constexpr int64_t kMaxLines = int64_t{1} << 31;

struct Kernel {
  CountColumns count;
  int64_t vector;  // bytes
};

Kernel choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return {count_columns_avx512, 64};
  if (active_isa() == kAvx2) return {count_columns_avx2, 32};
#endif
  return {count_columns<uint64_t>, 8};
}

// Adds what CountColumns has found in `bytes` bytes of a line, from byte `first` on, to the
// channels.
void add_to_channels(const uint32_t* found, int64_t vector, int64_t first, int64_t bytes,
                     int64_t row_bytes, bool alone, int64_t* counts) {
  for (int64_t i = 0; i < bytes; ++i) {
    int64_t* channel = counts + (first + i) % row_bytes * 8;
    const int64_t column = i / vector;
    const int64_t start = (column + 1) * vector <= bytes ? column * vector : bytes - vector;
    const uint32_t* from = found + 8 * column * vector + i - start;
    for (int j = 0; j < 8; ++j, ++channel, from += vector) {
      if (alone) {
        *channel += *from;
      } else {
        __atomic_fetch_add(channel, int64_t{*from}, __ATOMIC_RELAXED);
      }
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
  // Several short rows are taken as one line of a whole number of vectors.
  const int64_t vector = kernel.vector;
  const int64_t line = row_bytes < vector ? std::lcm(row_bytes, vector) : row_bytes;
  const int64_t lines = rows * row_bytes / line;
  const int64_t tiles = (line + kTileBytes - 1) / kTileBytes;  // of about the same size
  const int64_t tile = (line + tiles * kMaxVector - 1) / (tiles * kMaxVector) * kMaxVector;
  parallel_for(lines, kGrainBytes / line + 1, 1, threads, [&](int64_t begin, int64_t end) {
    const bool alone = end - begin == lines;
    for (int64_t first = begin; first < end; first += kMaxLines) {
      const int64_t some = end - first < kMaxLines ? end - first : kMaxLines;
      for (int64_t at = 0; at < line; at += tile) {
        const int64_t bytes = line - at < tile ? line - at : tile;
        alignas(kMaxVector) uint32_t found[8 * kTileBytes];
        kernel.count(packed + first * line + at, some, line, bytes, found);
        // Threads add to one array; integer sums do not depend on the order.
        add_to_channels(found, vector, at, bytes, row_bytes, alone, counts);
      }
    }
  });
  for (int64_t i = lines * line; i < rows * row_bytes; ++i) {
    for (int j = 0; j < 8; ++j) counts[i % row_bytes * 8 + j] += packed[i] >> j & 1;
  }
  return BDK_OK;
}
