// pack_signs with AVX-512: a comparison writes its bits straight into a mask register.
#include <immintrin.h>
#include <string.h>

#include "common/bits.h"
#include "cpu/pack_signs/pack_signs.h"

namespace bdk {
namespace {

// pattern - 1 < infinity, unsigned: see positive() in common/bits.h.
inline uint32_t positive_32(const uint32_t* x, __m512i one, __m512i infinity) {
  const __m512i pattern = _mm512_loadu_si512(x);
  return _mm512_cmplt_epu32_mask(_mm512_sub_epi32(pattern, one), infinity);
}

}  // namespace

void pack_signs_32_avx512(const uint32_t* x, uint8_t* packed, int64_t bytes) {
  const __m512i one = _mm512_set1_epi32(1);
  const __m512i infinity = _mm512_set1_epi32(static_cast<int>(kInfinity32));
  int64_t i = in_streams<8>(bytes, [&](int64_t at) {  // 256 bytes in, one 8-byte store out
    uint64_t word = 0;
    for (int k = 0; k < 4; ++k) {
      word |= static_cast<uint64_t>(positive_32(x + 8 * at + 16 * k, one, infinity)) << (16 * k);
    }
    memcpy(packed + at, &word, sizeof word);
  });
  for (; i < bytes; ++i) {
    const __m256i pattern = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 8 * i));
    const __m256i below = _mm256_sub_epi32(pattern, _mm512_castsi512_si256(one));
    packed[i] = _mm256_cmplt_epu32_mask(below, _mm512_castsi512_si256(infinity));
  }
}

void pack_signs_8_avx512(const uint8_t* x, uint8_t* packed, int64_t bytes) {
  int64_t i = in_streams<8>(bytes, [&](int64_t at) {
    const __m512i values = _mm512_loadu_si512(x + 8 * at);
    const uint64_t word = _mm512_test_epi8_mask(values, values);
    memcpy(packed + at, &word, sizeof word);
  });
  for (; i < bytes; ++i) {
    const __m128i values = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x + 8 * i));
    packed[i] = static_cast<uint8_t>(_mm_test_epi8_mask(values, values));
  }
}

void pack_signs_16_avx512(const uint16_t* x, uint8_t* packed, int64_t bytes, uint16_t infinity) {
  const __m512i one = _mm512_set1_epi16(1);
  const __m512i top = _mm512_set1_epi16(static_cast<int16_t>(infinity));
  int64_t i = in_streams<4>(bytes, [&](int64_t at) {
    const __m512i pattern = _mm512_loadu_si512(x + 8 * at);
    const uint32_t word = _mm512_cmplt_epu16_mask(_mm512_sub_epi16(pattern, one), top);
    memcpy(packed + at, &word, sizeof word);
  });
  for (; i < bytes; ++i) {
    const __m128i pattern = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 8 * i));
    const __m128i below = _mm_sub_epi16(pattern, _mm512_castsi512_si128(one));
    packed[i] = _mm_cmplt_epu16_mask(below, _mm512_castsi512_si128(top));
  }
}

}  // namespace bdk
