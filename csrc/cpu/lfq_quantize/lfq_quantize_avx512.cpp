// lfq_quantize with AVX-512: the comparison's mask is the packed bits, and chooses between +1 and
// -1.
#include <immintrin.h>
#include <string.h>

#include "common/dtype.h"
#include "cpu/lfq_quantize/lfq_quantize.h"

namespace bdk {
namespace {

// Unsigned, zero less one is the greatest: one comparison rejects it, NaN and all below.
inline __mmask16 positive_32(__m512i pattern) {
  return _mm512_cmplt_epu32_mask(_mm512_sub_epi32(pattern, _mm512_set1_epi32(1)),
                                 _mm512_set1_epi32(static_cast<int>(kInfinity32)));
}

inline __mmask32 positive_16(__m512i pattern, __m512i infinity) {
  return _mm512_cmplt_epu16_mask(_mm512_sub_epi16(pattern, _mm512_set1_epi16(1)), infinity);
}

}  // namespace

void lfq_quantize_32_avx512(const uint32_t* x, uint32_t* y, uint8_t* packed, int64_t bytes) {
  const __m512i plus = _mm512_set1_epi32(static_cast<int>(kOne32));
  const __m512i minus = _mm512_set1_epi32(static_cast<int>(kOne32 | 0x80000000u));
  int64_t i = 0;
  for (; i + 2 <= bytes; i += 2) {
    const __mmask16 bits = positive_32(_mm512_loadu_si512(x + 8 * i));
    _mm512_storeu_si512(y + 8 * i, _mm512_mask_mov_epi32(minus, bits, plus));
    memcpy(packed + i, &bits, sizeof bits);
  }
  if (i < bytes) {
    const __mmask16 bits = positive_32(_mm512_maskz_loadu_epi32(0xFF, x + 8 * i));
    _mm512_mask_storeu_epi32(y + 8 * i, 0xFF, _mm512_mask_mov_epi32(minus, bits, plus));
    packed[i] = static_cast<uint8_t>(bits);
  }
}

void lfq_quantize_16_avx512(const uint16_t* x, uint16_t* y, uint8_t* packed, int64_t bytes,
                            uint16_t infinity, uint16_t one) {
  const __m512i top = _mm512_set1_epi16(static_cast<int16_t>(infinity));
  const __m512i plus = _mm512_set1_epi16(static_cast<int16_t>(one));
  const __m512i minus = _mm512_set1_epi16(static_cast<int16_t>(one | 0x8000u));
  int64_t i = 0;
  for (; i + 4 <= bytes; i += 4) {
    const __mmask32 bits = positive_16(_mm512_loadu_si512(x + 8 * i), top);
    _mm512_storeu_si512(y + 8 * i, _mm512_mask_mov_epi16(minus, bits, plus));
    memcpy(packed + i, &bits, sizeof bits);
  }
  for (; i < bytes; ++i) {
    const __mmask32 bits = positive_16(_mm512_maskz_loadu_epi16(0xFF, x + 8 * i), top);
    _mm512_mask_storeu_epi16(y + 8 * i, 0xFF, _mm512_mask_mov_epi16(minus, bits, plus));
    packed[i] = static_cast<uint8_t>(bits);
  }
}

}  // namespace bdk
