// bit_counts compiled for AVX-512: 64 bytes a column.
#include "cpu/bit_counts/bit_counts.h"

namespace bdk {

void count_column_avx512(const uint8_t* data, int64_t rows, int64_t stride, uint32_t* counts) {
  typedef uint64_t Vector __attribute__((vector_size(64)));
  count_column<Vector>(data, rows, stride, counts);
}

}  // namespace bdk
