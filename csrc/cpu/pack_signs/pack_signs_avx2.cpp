// pack_signs with AVX2: compare, then movemask gathers the lane signs into a scalar register.
#include <immintrin.h>
#include <string.h>

#include "common/bits.h"
#include "cpu/pack_signs/pack_signs.h"

namespace bdk {
namespace {

// Eight float patterns to eight bits. Signed comparisons: 0 < pattern also rejects the sign bit,
// pattern <= infinity rejects NaN. The sign of (not above) and (above zero) is collected by
// movmskps.
inline uint32_t byte_32(const uint32_t* x, __m256i infinity) {
  const __m256i pattern = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m256i above_zero = _mm256_cmpgt_epi32(pattern, _mm256_setzero_si256());
  const __m256i nan = _mm256_cmpgt_epi32(pattern, infinity);
  return static_cast<uint32_t>(
      _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_andnot_si256(nan, above_zero))));
}

inline __m256i positive_16(const uint16_t* x, __m256i infinity) {
  const __m256i pattern = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m256i above_zero = _mm256_cmpgt_epi16(pattern, _mm256_setzero_si256());
  return _mm256_andnot_si256(_mm256_cmpgt_epi16(pattern, infinity), above_zero);
}

}  // namespace

void pack_signs_32_avx2(const uint32_t* x, uint8_t* packed, int64_t bytes) {
  const __m256i infinity = _mm256_set1_epi32(static_cast<int>(kInfinity32));
  int64_t i = in_streams<8>(bytes, [&](int64_t at) {  // 256 bytes in, one 8-byte store out
    uint64_t word = 0;
    for (int k = 0; k < 8; ++k) {
      word |= static_cast<uint64_t>(byte_32(x + 8 * (at + k), infinity)) << (8 * k);
    }
    memcpy(packed + at, &word, sizeof word);
  });
  for (; i < bytes; ++i) packed[i] = static_cast<uint8_t>(byte_32(x + 8 * i, infinity));
}

void pack_signs_8_avx2(const uint8_t* x, uint8_t* packed, int64_t bytes) {
  int64_t i = in_streams<8>(bytes, [&](int64_t at) {  // a cache line in, one 8-byte store out
    const auto ones = [&](const uint8_t* from) {
      const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      const __m256i zeros = _mm256_cmpeq_epi8(values, _mm256_setzero_si256());
      return static_cast<uint64_t>(~static_cast<uint32_t>(_mm256_movemask_epi8(zeros)));
    };
    const uint64_t word = ones(x + 8 * at) | ones(x + 8 * at + 32) << 32;
    memcpy(packed + at, &word, sizeof word);
  });
  for (; i < bytes; ++i) {
    const __m128i values = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x + 8 * i));
    const __m128i zeros = _mm_cmpeq_epi8(values, _mm_setzero_si128());
    packed[i] = static_cast<uint8_t>(~_mm_movemask_epi8(zeros));
  }
}

void pack_signs_16_avx2(const uint16_t* x, uint8_t* packed, int64_t bytes, uint16_t infinity) {
  const __m256i top = _mm256_set1_epi16(static_cast<int16_t>(infinity));
  int64_t i = in_streams<4>(bytes, [&](int64_t at) {
    const __m256i low = positive_16(x + 8 * at, top);
    const __m256i high = positive_16(x + 8 * at + 16, top);
    // vpacksswb works on 128-bit halves and leaves the quarters in order 0 2 1 3; vpermq mends
    // that.
    const __m256i lanes = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xD8);
    const uint32_t word = static_cast<uint32_t>(_mm256_movemask_epi8(lanes));
    memcpy(packed + at, &word, sizeof word);
  });
  for (; i < bytes; ++i) {
    uint32_t byte = 0;
    for (int j = 0; j < 8; ++j) byte |= positive(x[8 * i + j], infinity) << j;
    packed[i] = static_cast<uint8_t>(byte);
  }
}

}  // namespace bdk
