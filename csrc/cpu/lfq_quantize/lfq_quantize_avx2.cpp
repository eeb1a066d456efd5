// lfq_quantize with AVX2: one comparison gives the sign bits of +1 and -1 and, by movemask, the
// byte.
#include <immintrin.h>

#include "common/bits.h"
#include "common/dtype.h"
#include "cpu/lfq_quantize/lfq_quantize.h"

namespace bdk {

void lfq_quantize_32_avx2(const uint32_t* x, uint32_t* y, uint8_t* packed, int64_t bytes) {
  const __m256i infinity = _mm256_set1_epi32(static_cast<int>(kInfinity32));
  const __m256i one = _mm256_set1_epi32(static_cast<int>(kOne32));
  const __m256i sign = _mm256_set1_epi32(static_cast<int>(0x80000000u));
  for (int64_t i = 0; i < bytes; ++i) {
    const __m256i pattern = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 8 * i));
    const __m256i above_zero = _mm256_cmpgt_epi32(pattern, _mm256_setzero_si256());
    const __m256i positive = _mm256_andnot_si256(_mm256_cmpgt_epi32(pattern, infinity), above_zero);
    const __m256i value = _mm256_or_si256(one, _mm256_andnot_si256(positive, sign));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + 8 * i), value);
    packed[i] = static_cast<uint8_t>(_mm256_movemask_ps(_mm256_castsi256_ps(positive)));
  }
}

void lfq_quantize_16_avx2(const uint16_t* x, uint16_t* y, uint8_t* packed, int64_t bytes,
                          uint16_t infinity, uint16_t one) {
  const __m128i top = _mm_set1_epi16(static_cast<int16_t>(infinity));
  const __m128i plus = _mm_set1_epi16(static_cast<int16_t>(one));
  const __m128i sign = _mm_set1_epi16(static_cast<int16_t>(0x8000));
  for (int64_t i = 0; i < bytes; ++i) {
    const __m128i pattern = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 8 * i));
    const __m128i above_zero = _mm_cmpgt_epi16(pattern, _mm_setzero_si128());
    const __m128i positive = _mm_andnot_si128(_mm_cmpgt_epi16(pattern, top), above_zero);
    const __m128i value = _mm_or_si128(plus, _mm_andnot_si128(positive, sign));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + 8 * i), value);
    packed[i] = static_cast<uint8_t>(_mm_movemask_epi8(_mm_packs_epi16(positive, positive)));
  }
}

}  // namespace bdk
