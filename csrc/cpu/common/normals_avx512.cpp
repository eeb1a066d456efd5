// The samplers' noise with AVX-512: eight counters a vector, one in each 64-bit lane.
#include <immintrin.h>

#include "cpu/common/box_muller.h"
#include "cpu/common/normals.h"

namespace bdk {
namespace {

// The normals of 8 * kVectors blocks; see normals_avx2.cpp.
template <int kVectors>
void draw(NoiseKey key, uint32_t step, uint32_t block, float* normals) {
  const __m512i multiplier0 = _mm512_set1_epi64(0xD2511F53u);
  const __m512i multiplier1 = _mm512_set1_epi64(0xCD9E8D57u);
  uint32_t key0 = key.seed_low, key1 = key.seed_high;
  __m512i c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    // In this order the two unpacks at the end give blocks 0 .. 3 and 4 .. 7.
    c0[v] = _mm512_add_epi64(_mm512_set1_epi64(int64_t{block} + 8 * v),
                             _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
    c1[v] = _mm512_set1_epi64(step);
    c2[v] = _mm512_set1_epi64(key.ar_step);
    c3[v] = _mm512_set1_epi64(key.sample);
  }
  for (int round = 0; round < 10; ++round) {
    const __m512i k0 = _mm512_set1_epi32(static_cast<int>(key0));
    const __m512i k1 = _mm512_set1_epi32(static_cast<int>(key1));
    for (int v = 0; v < kVectors; ++v) {
      const __m512i p = _mm512_mul_epu32(multiplier0, c0[v]);
      const __m512i q = _mm512_mul_epu32(multiplier1, c2[v]);
      c0[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(q, 32), c1[v], k0, 0x96);  // xor of 3
      c2[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p, 32), c3[v], k1, 0x96);
      c1[v] = q;
      c3[v] = p;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  constexpr __mmask16 kOdd = 0xAAAA;
  constexpr _MM_PERM_ENUM kEvenTwice = static_cast<_MM_PERM_ENUM>(0xA0);
  for (int v = 0; v < kVectors; ++v) {
    const __m512i radius_words = _mm512_mask_shuffle_epi32(c0[v], kOdd, c2[v], kEvenTwice);
    const __m512i angle_words = _mm512_mask_shuffle_epi32(c1[v], kOdd, c3[v], kEvenTwice);
    const Float radial = uniform(pattern<Word>(radius_words));
    const __m512 radius = _mm512_sqrt_ps(-2.0f * logarithm(radial));
    const Float turns = uniform(pattern<Word>(angle_words));
    Float sine, cosine;
    sine_and_cosine(turns, sine, cosine);
    const __m512 first = radius * cosine, second = radius * sine;
    _mm512_storeu_ps(normals + 32 * v, _mm512_unpacklo_ps(first, second));
    _mm512_storeu_ps(normals + 32 * v + 16, _mm512_unpackhi_ps(first, second));
  }
}

}  // namespace

void normals_avx512(NoiseKey key, uint32_t step, uint32_t block, int blocks, float* normals) {
  int i = 0;
  for (; i + 8 < blocks; i += 16) {
    draw<2>(key, step, block + static_cast<uint32_t>(i), normals + 4 * i);
  }
  if (i < blocks) draw<1>(key, step, block + static_cast<uint32_t>(i), normals + 4 * i);
}

}  // namespace bdk
