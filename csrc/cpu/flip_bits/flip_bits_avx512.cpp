// flip_bits with AVX-512: eight counters a vector, one in each 64-bit lane.
#include <immintrin.h>
#include <string.h>

#include "cpu/flip_bits/flip_bits.h"

namespace bdk {
namespace {

constexpr int kVectors = kFlipLanes / 8;  // side by side: a round is a chain of 7 cycles or so

// A counter word is the low half of its lane. vpmuludq reads no more than that, so the high halves
// may hold anything.
void draw(FlipKey key, uint64_t first, uint8_t* flips) {
  const __m512i multiplier0 = _mm512_set1_epi64(0xD2511F53u);
  const __m512i multiplier1 = _mm512_set1_epi64(0xCD9E8D57u);
  const __m512i weyl0 = _mm512_set1_epi32(static_cast<int>(0x9E3779B9u));
  const __m512i weyl1 = _mm512_set1_epi32(static_cast<int>(0xBB67AE85u));
  __m512i key0 = _mm512_set1_epi32(static_cast<int>(key.seed_low));
  __m512i key1 = _mm512_set1_epi32(static_cast<int>(key.seed_high));
  __m512i c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const __m512i start = _mm512_set1_epi64(static_cast<int64_t>(first + 8 * v));
    // This order makes the two unpacks at the end give bytes 0..3 and 4..7.
    c0[v] = _mm512_add_epi64(start, _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
    c1[v] = _mm512_srli_epi64(c0[v], 32);
    c2[v] = _mm512_set1_epi64(key.offset);
    c3[v] = _mm512_set1_epi64(kFlipDomain);
  }
  for (int round = 0; round < 10; ++round) {
    for (int v = 0; v < kVectors; ++v) {
      const __m512i p = _mm512_mul_epu32(multiplier0, c0[v]);
      const __m512i q = _mm512_mul_epu32(multiplier1, c2[v]);
      c0[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(q, 32), c1[v], key0, 0x96);  // xor of 3
      c2[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p, 32), c3[v], key1, 0x96);
      c1[v] = q;
      c3[v] = p;
    }
    key0 = _mm512_add_epi32(key0, weyl0);
    key1 = _mm512_add_epi32(key1, weyl1);
  }
  const __m512i threshold = _mm512_set1_epi16(static_cast<int16_t>(key.threshold));
  constexpr __mmask16 kOdd = 0xAAAA;
  constexpr _MM_PERM_ENUM kEvenTwice = static_cast<_MM_PERM_ENUM>(0xA0);
  for (int v = 0; v < kVectors; ++v) {
    // Words 0 and 1, words 2 and 3 of each counter side by side; then all four of every other one.
    const __m512i low = _mm512_mask_shuffle_epi32(c0[v], kOdd, c1[v], kEvenTwice);
    const __m512i high = _mm512_mask_shuffle_epi32(c2[v], kOdd, c3[v], kEvenTwice);
    const uint64_t below03 = _mm512_cmplt_epu16_mask(_mm512_unpacklo_epi64(low, high), threshold);
    const uint64_t below47 = _mm512_cmplt_epu16_mask(_mm512_unpackhi_epi64(low, high), threshold);
    const uint64_t eight = below03 | below47 << 32;
    memcpy(flips + 8 * v, &eight, sizeof eight);
  }
}

void negate_32(const uint32_t* x, uint32_t* y, const uint8_t* flips, int bytes) {
  const __m512i sign = _mm512_set1_epi32(INT32_MIN);
  int i = 0;
  for (; i + 2 <= bytes; i += 2) {
    uint16_t flip;
    memcpy(&flip, flips + i, sizeof flip);
    const __m512i values = _mm512_loadu_si512(x + 8 * i);
    _mm512_storeu_si512(y + 8 * i, _mm512_mask_xor_epi32(values, flip, values, sign));
  }
  if (i < bytes) {
    const __m512i values = _mm512_maskz_loadu_epi32(0xFF, x + 8 * i);
    _mm512_mask_storeu_epi32(y + 8 * i, 0xFF,
                             _mm512_mask_xor_epi32(values, flips[i], values, sign));
  }
}

void negate_16(const uint16_t* x, uint16_t* y, const uint8_t* flips, int bytes) {
  const __m512i sign = _mm512_set1_epi16(INT16_MIN);
  for (int i = 0; i < bytes; i += 4) {
    const int some = bytes - i < 4 ? bytes - i : 4;
    uint32_t flip = 0;
    memcpy(&flip, flips + i, static_cast<size_t>(some));
    const __mmask32 inside = static_cast<__mmask32>((uint64_t{1} << (8 * some)) - 1);
    const __m512i values = _mm512_maskz_loadu_epi16(inside, x + 8 * i);
    const __m512i negated = _mm512_xor_si512(values, _mm512_maskz_mov_epi16(flip, sign));
    _mm512_mask_storeu_epi16(y + 8 * i, inside, negated);
  }
}

}  // namespace

const FlipLoops kFlipAvx512 = {draw, negate_32, negate_16};

}  // namespace bdk
