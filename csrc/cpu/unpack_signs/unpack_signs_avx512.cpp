// unpack_signs with AVX-512: packed bits are a mask register as they are, and a masked move sets
// signs.
#include <immintrin.h>
#include <string.h>

#include "common/dtype.h"
#include "cpu/unpack_signs/unpack_signs.h"

namespace bdk {
namespace {

template <class Word>
inline Word load_word(const uint8_t* packed) {
  Word word;
  memcpy(&word, packed, sizeof word);
  return word;
}

template <bool kStreamed>
inline void store(void* y, __m512i values) {
  if (kStreamed) {
    _mm512_stream_si512(static_cast<__m512i*>(y), values);
  } else {
    _mm512_storeu_si512(y, values);
  }
}

template <bool kStreamed>
void unpack_32(const uint8_t* packed, uint32_t* y, int64_t bytes) {
  const __m512i plus = _mm512_set1_epi32(static_cast<int>(kOne32));
  const __m512i minus = _mm512_set1_epi32(static_cast<int>(kOne32 | 0x80000000u));
  int64_t i = 0;
  const auto unpack_byte = [&] {
    _mm512_mask_storeu_epi32(y, 0xFF, _mm512_mask_mov_epi32(minus, packed[i++], plus));
    y += 8;
  };
  while (kStreamed && i < bytes && reinterpret_cast<uintptr_t>(y) % 64 != 0) unpack_byte();
  for (; i + 2 <= bytes; i += 2, y += 16) {
    store<kStreamed>(y, _mm512_mask_mov_epi32(minus, load_word<uint16_t>(packed + i), plus));
  }
  if (i < bytes) unpack_byte();
}

template <bool kStreamed>
void unpack_16(const uint8_t* packed, uint16_t* y, int64_t bytes, uint16_t one) {
  const __m512i plus = _mm512_set1_epi16(static_cast<int16_t>(one));
  const __m512i minus = _mm512_set1_epi16(static_cast<int16_t>(one | 0x8000u));
  int64_t i = 0;
  const auto unpack_byte = [&] {
    _mm512_mask_storeu_epi16(y, 0xFF, _mm512_mask_mov_epi16(minus, packed[i++], plus));
    y += 8;
  };
  while (kStreamed && i < bytes && reinterpret_cast<uintptr_t>(y) % 64 != 0) unpack_byte();
  for (; i + 4 <= bytes; i += 4, y += 32) {
    store<kStreamed>(y, _mm512_mask_mov_epi16(minus, load_word<uint32_t>(packed + i), plus));
  }
  while (i < bytes) unpack_byte();
}

}  // namespace

void unpack_signs_32_avx512(const uint8_t* packed, uint32_t* y, int64_t bytes) {
  unpack_32<false>(packed, y, bytes);
}

void stream_signs_32_avx512(const uint8_t* packed, uint32_t* y, int64_t bytes) {
  unpack_32<true>(packed, y, bytes);
}

void unpack_signs_16_avx512(const uint8_t* packed, uint16_t* y, int64_t bytes, uint16_t one) {
  unpack_16<false>(packed, y, bytes, one);
}

void stream_signs_16_avx512(const uint8_t* packed, uint16_t* y, int64_t bytes, uint16_t one) {
  unpack_16<true>(packed, y, bytes, one);
}

}  // namespace bdk
