// flip_bits with AVX2: four counters a vector, one in each 64-bit lane.
#include <immintrin.h>
#include <string.h>

#include "cpu/flip_bits/flip_bits.h"

namespace bdk {
namespace {

constexpr int kVectors = 2;  // side by side: four words each, of sixteen registers

// A counter word is the low half of its lane. vpmuludq reads no more than that, so the high halves
// may hold anything.
void draw_eight(FlipKey key, uint64_t first, uint8_t* flips) {
  const __m256i multiplier0 = _mm256_set1_epi64x(0xD2511F53u);
  const __m256i multiplier1 = _mm256_set1_epi64x(0xCD9E8D57u);
  uint32_t key0 = key.seed_low, key1 = key.seed_high;
  __m256i c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const __m256i start = _mm256_set1_epi64x(static_cast<int64_t>(first + 4 * v));
    c0[v] = _mm256_add_epi64(start, _mm256_setr_epi64x(0, 1, 2, 3));
    c1[v] = _mm256_srli_epi64(c0[v], 32);
    c2[v] = _mm256_set1_epi64x(key.offset);
    c3[v] = _mm256_set1_epi64x(kFlipDomain);
  }
  for (int round = 0; round < 10; ++round) {
    const __m256i k0 = _mm256_set1_epi32(static_cast<int>(key0));
    const __m256i k1 = _mm256_set1_epi32(static_cast<int>(key1));
    for (int v = 0; v < kVectors; ++v) {
      const __m256i p = _mm256_mul_epu32(multiplier0, c0[v]);
      const __m256i q = _mm256_mul_epu32(multiplier1, c2[v]);
      c0[v] = _mm256_xor_si256(_mm256_srli_epi64(q, 32), _mm256_xor_si256(c1[v], k0));
      c2[v] = _mm256_xor_si256(_mm256_srli_epi64(p, 32), _mm256_xor_si256(c3[v], k1));
      c1[v] = q;
      c3[v] = p;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  // Comparisons are signed, so the top bit of both sides is inverted.
  const __m256i top = _mm256_set1_epi16(INT16_MIN);
  const __m256i threshold =
      _mm256_xor_si256(_mm256_set1_epi16(static_cast<int16_t>(key.threshold)), top);
  for (int v = 0; v < kVectors; ++v) {
    // Words 0 and 1, words 2 and 3 of each counter side by side; then all four of every other one.
    const __m256i low = _mm256_blend_epi32(c0[v], _mm256_slli_epi64(c1[v], 32), 0xAA);
    const __m256i high = _mm256_blend_epi32(c2[v], _mm256_slli_epi64(c3[v], 32), 0xAA);
    const __m256i even = _mm256_xor_si256(_mm256_unpacklo_epi64(low, high), top);
    const __m256i odd = _mm256_xor_si256(_mm256_unpackhi_epi64(low, high), top);
    // vpacksswb works on 128-bit halves, and so brings the counters back in order.
    const __m256i below =
        _mm256_packs_epi16(_mm256_cmpgt_epi16(threshold, even), _mm256_cmpgt_epi16(threshold, odd));
    const int four = _mm256_movemask_epi8(below);
    memcpy(flips + 4 * v, &four, sizeof four);
  }
}

void draw(FlipKey key, uint64_t first, uint8_t* flips) {
  for (int i = 0; i < kFlipLanes; i += 4 * kVectors) draw_eight(key, first + i, flips + i);
}

// All ones in the lanes whose bit of `flips` is set, to be shifted to the sign.
void negate_32(const uint32_t* x, uint32_t* y, const uint8_t* flips, int bytes) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  for (int i = 0; i < bytes; ++i) {
    const __m256i chosen = _mm256_and_si256(_mm256_set1_epi32(flips[i]), bit);
    const __m256i sign = _mm256_slli_epi32(_mm256_cmpeq_epi32(chosen, bit), 31);
    const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 8 * i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + 8 * i), _mm256_xor_si256(values, sign));
  }
}

void negate_16(const uint16_t* x, uint16_t* y, const uint8_t* flips, int bytes) {
  const __m128i bit = _mm_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128);
  for (int i = 0; i < bytes; ++i) {
    const __m128i chosen = _mm_and_si128(_mm_set1_epi16(flips[i]), bit);
    const __m128i sign = _mm_slli_epi16(_mm_cmpeq_epi16(chosen, bit), 15);
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 8 * i));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + 8 * i), _mm_xor_si128(values, sign));
  }
}

}  // namespace

const FlipLoops kFlipAvx2 = {draw, negate_32, negate_16};

}  // namespace bdk
