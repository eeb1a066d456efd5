// unpack_signs with AVX2: a byte is broadcast, each lane tests its own bit, the outcome sets the
// sign.
#include <immintrin.h>

#include "common/dtype.h"
#include "cpu/unpack_signs.h"

namespace bdk {
namespace {

inline __m256i values_32(uint8_t byte) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i missing =
      _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(byte), bit), _mm256_setzero_si256());
  // All ones where the bit is missing: shifted left, the sign bit.
  return _mm256_or_si256(_mm256_slli_epi32(missing, 31),
                         _mm256_set1_epi32(static_cast<int>(kOne32)));
}

inline __m256i values_16(const uint8_t* packed, __m256i one) {
  const __m256i bit =
      _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12,
                        1 << 13, 1 << 14, static_cast<int16_t>(1 << 15));
  const int16_t word = static_cast<int16_t>(packed[0] | packed[1] << 8);
  const __m256i missing =
      _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(word), bit), _mm256_setzero_si256());
  return _mm256_or_si256(_mm256_slli_epi16(missing, 15), one);
}

}  // namespace

void unpack_signs_32_avx2(const uint8_t* packed, uint32_t* y, int64_t bytes) {
  for (int64_t i = 0; i < bytes; ++i, y += 8) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), values_32(packed[i]));
  }
}

void unpack_signs_16_avx2(const uint8_t* packed, uint16_t* y, int64_t bytes, uint16_t one) {
  const __m256i ones = _mm256_set1_epi16(static_cast<int16_t>(one));
  int64_t i = 0;
  for (; i + 2 <= bytes; i += 2, y += 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), values_16(packed + i, ones));
  }
  for (; i < bytes; ++i, y += 8) {
    const uint8_t last[2] = {packed[i], 0};
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm256_castsi256_si128(values_16(last, ones)));
  }
}

}  // namespace bdk
