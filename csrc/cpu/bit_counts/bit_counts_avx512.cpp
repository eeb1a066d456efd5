// bit_counts compiled for AVX-512: 64 bytes a column.
#include "cpu/bit_counts/bit_counts.h"

namespace bdk {

void count_columns_avx512(const uint8_t* data, int64_t lines, int64_t stride, int64_t bytes,
                          uint32_t* counts) {
  count_columns<Vector512>(data, lines, stride, bytes, counts);
}

}  // namespace bdk
