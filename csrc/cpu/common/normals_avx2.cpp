// The samplers' noise with AVX2: four counters a vector, one in each 64-bit lane.
#include <immintrin.h>

#include "cpu/common/box_muller.h"
#include "cpu/common/normals.h"

namespace bdk {
namespace {

// The normals of 4 * kVectors blocks. Several vectors are computed together, since a round is a
// dependent chain of about eight cycles. A counter word is the low half of its lane; vpmuludq
// ignores the high half.
template <int kVectors>
void draw(NoiseKey key, uint32_t step, uint32_t block, float* normals) {
  const __m256i multiplier0 = _mm256_set1_epi64x(0xD2511F53u);
  const __m256i multiplier1 = _mm256_set1_epi64x(0xCD9E8D57u);
  uint32_t key0 = key.seed_low, key1 = key.seed_high;
  __m256i c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    // In this order the two unpacks at the end give blocks 0, 1 and 2, 3.
    c0[v] = _mm256_add_epi64(_mm256_set1_epi64x(int64_t{block} + 4 * v),
                             _mm256_setr_epi64x(0, 2, 1, 3));
    c1[v] = _mm256_set1_epi64x(step);
    c2[v] = _mm256_set1_epi64x(key.ar_step);
    c3[v] = _mm256_set1_epi64x(key.sample);
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
  for (int v = 0; v < kVectors; ++v) {
    // Words 0 and 2 of each block give radii, words 1 and 3 angles.
    const __m256i radius_words = _mm256_blend_epi32(c0[v], _mm256_slli_epi64(c2[v], 32), 0xAA);
    const __m256i angle_words = _mm256_blend_epi32(c1[v], _mm256_slli_epi64(c3[v], 32), 0xAA);
    const Float radial = uniform(pattern<Word>(radius_words));
    const __m256 radius = _mm256_sqrt_ps(-2.0f * logarithm(radial));
    Float sine, cosine;
    sine_and_cosine(uniform(pattern<Word>(angle_words)), sine, cosine);
    const __m256 first = radius * cosine, second = radius * sine;
    _mm256_storeu_ps(normals + 16 * v, _mm256_unpacklo_ps(first, second));
    _mm256_storeu_ps(normals + 16 * v + 8, _mm256_unpackhi_ps(first, second));
  }
}

}  // namespace

void normals_avx2(NoiseKey key, uint32_t step, uint32_t block, int blocks, float* normals) {
  int i = 0;
  for (; i + 4 < blocks; i += 8) {
    draw<2>(key, step, block + static_cast<uint32_t>(i), normals + 4 * i);
  }
  if (i < blocks) draw<1>(key, step, block + static_cast<uint32_t>(i), normals + 4 * i);
}

}  // namespace bdk
