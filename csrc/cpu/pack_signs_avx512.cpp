// pack_signs with AVX-512: a comparison writes its bits straight into a mask register.
//
// From a cache that takes half the time of AVX2. From memory, 256-bit loads with prefetch are ahead
// (2.1 against 2.35 ms for 64 MB of float32 on one core of an EPYC of the Zen 4 generation).
#include <immintrin.h>
#include <string.h>

#include "common/bits.h"
#include "cpu/pack_signs.h"

namespace bdk {
namespace {

// pattern - 1 < infinity, unsigned: see positive() in common/bits.h.
inline uint32_t positive_32(const uint32_t* x, __m512i one, __m512i infinity) {
  const __m512i pattern = _mm512_loadu_si512(x);
  return _mm512_cmplt_epu32_mask(_mm512_sub_epi32(pattern, one), infinity);
}

}  // namespace

void pack_signs_32_avx512(const uint32_t* x, uint8_t* packed, int64_t bytes, bool prefetch) {
  if (prefetch) return pack_signs_32_avx2(x, packed, bytes, prefetch);
  const __m512i one = _mm512_set1_epi32(1);
  const __m512i infinity = _mm512_set1_epi32(static_cast<int>(kInfinity32));
  int64_t i = 0;
  for (; i + 8 <= bytes; i += 8, x += 64) {  // 256 bytes in, one 8-byte store out
    uint64_t word = 0;
    for (int k = 0; k < 4; ++k) {
      word |= static_cast<uint64_t>(positive_32(x + 16 * k, one, infinity)) << (16 * k);
    }
    memcpy(packed + i, &word, sizeof word);
  }
  for (; i < bytes; ++i, x += 8) {
    const __m256i pattern = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    const __m256i below = _mm256_sub_epi32(pattern, _mm512_castsi512_si256(one));
    packed[i] = _mm256_cmplt_epu32_mask(below, _mm512_castsi512_si256(infinity));
  }
}

void pack_signs_16_avx512(const uint16_t* x, uint8_t* packed, int64_t bytes, bool prefetch,
                          uint16_t infinity) {
  if (prefetch) return pack_signs_16_avx2(x, packed, bytes, prefetch, infinity);
  const __m512i one = _mm512_set1_epi16(1);
  const __m512i top = _mm512_set1_epi16(static_cast<int16_t>(infinity));
  int64_t i = 0;
  for (; i + 4 <= bytes; i += 4, x += 32) {
    const __m512i pattern = _mm512_loadu_si512(x);
    const uint32_t word = _mm512_cmplt_epu16_mask(_mm512_sub_epi16(pattern, one), top);
    memcpy(packed + i, &word, sizeof word);
  }
  for (; i < bytes; ++i, x += 8) {
    const __m128i pattern = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    const __m128i below = _mm_sub_epi16(pattern, _mm512_castsi512_si128(one));
    packed[i] = _mm_cmplt_epu16_mask(below, _mm512_castsi512_si128(top));
  }
}

}  // namespace bdk
