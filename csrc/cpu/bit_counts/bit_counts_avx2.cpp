// bit_counts compiled for AVX2: 32 bytes a column.
#include "cpu/bit_counts/bit_counts.h"

namespace bdk {

void count_columns_avx2(const uint8_t* data, int64_t lines, int64_t stride, int64_t bytes,
                        uint32_t* counts) {
  typedef uint64_t Vector __attribute__((vector_size(32)));
  count_columns<Vector>(data, lines, stride, bytes, counts);
}

}  // namespace bdk
