// unpack_signs with AVX2: bits are broadcast, and each lane makes its own bit a sign. 32-bit lanes
// shift it to the top, which takes half as long as testing it; 16-bit lanes have no shift by
// different counts.
#include <immintrin.h>
#include <string.h>

#include "common/dtype.h"
#include "cpu/unpack_signs/unpack_signs.h"

namespace bdk {
namespace {

// The values of bits 31 - shift[lane].
inline __m256i values_32(__m256i bits, __m256i shift) {
  const __m256i sign = _mm256_set1_epi32(INT32_MIN);
  const __m256i minus_one = _mm256_set1_epi32(static_cast<int>(kOne32) | INT32_MIN);
  return _mm256_xor_si256(_mm256_and_si256(_mm256_sllv_epi32(bits, shift), sign), minus_one);
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

template <bool kStreamed>
inline void store(void* y, __m256i values) {
  if (kStreamed) {
    _mm256_stream_si256(static_cast<__m256i*>(y), values);
  } else {
    _mm256_storeu_si256(static_cast<__m256i*>(y), values);
  }
}

template <bool kStreamed>
void unpack_32(const uint8_t* packed, uint32_t* y, int64_t bytes) {
  const __m256i first = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
  const auto unpack = [&](int32_t bits, int byte) {
    const __m256i shift = _mm256_sub_epi32(first, _mm256_set1_epi32(8 * byte));
    store<kStreamed>(y, values_32(_mm256_set1_epi32(bits), shift));
    y += 8;
  };
  int64_t i = 0;
  for (; i + 4 <= bytes; i += 4) {
    int32_t bits;
    memcpy(&bits, packed + i, sizeof bits);
    for (int byte = 0; byte < 4; ++byte) unpack(bits, byte);
  }
  for (; i < bytes; ++i) unpack(packed[i], 0);
}

template <bool kStreamed>
void unpack_16(const uint8_t* packed, uint16_t* y, int64_t bytes, uint16_t one) {
  const __m256i ones = _mm256_set1_epi16(static_cast<int16_t>(one));
  int64_t i = 0;
  const auto unpack_byte = [&] {
    const uint8_t byte[2] = {packed[i++], 0};
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm256_castsi256_si128(values_16(byte, ones)));
    y += 8;
  };
  while (kStreamed && i < bytes && reinterpret_cast<uintptr_t>(y) % 32 != 0) unpack_byte();
  for (; i + 2 <= bytes; i += 2, y += 16) store<kStreamed>(y, values_16(packed + i, ones));
  while (i < bytes) unpack_byte();
}

}  // namespace

void unpack_signs_32_avx2(const uint8_t* packed, uint32_t* y, int64_t bytes) {
  unpack_32<false>(packed, y, bytes);
}

void stream_signs_32_avx2(const uint8_t* packed, uint32_t* y, int64_t bytes) {
  unpack_32<true>(packed, y, bytes);
}

void unpack_signs_16_avx2(const uint8_t* packed, uint16_t* y, int64_t bytes, uint16_t one) {
  unpack_16<false>(packed, y, bytes, one);
}

void stream_signs_16_avx2(const uint8_t* packed, uint16_t* y, int64_t bytes, uint16_t one) {
  unpack_16<true>(packed, y, bytes, one);
}

}  // namespace bdk
