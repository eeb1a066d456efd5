// Guided predictions with AVX2.
#include <immintrin.h>

#include "common/dtype.h"
#include "common/guidance.h"
#include "cpu/common/guidance.h"

namespace bdk {
namespace {

template <int kDtype>
__m256 load(const void* values, int64_t i) {
  if constexpr (kDtype == kFloat32) {
    return _mm256_loadu_ps(static_cast<const float*>(values) + i);
  } else {
    const __m128i half =
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(values) + i));
    if constexpr (kDtype == kFloat16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
}

template <int kDtype>
float load_one(const void* values, int64_t i) {
  if constexpr (kDtype == kFloat32) return static_cast<const float*>(values)[i];
  const __m128i one = _mm_cvtsi32_si128(static_cast<const uint16_t*>(values)[i]);
  if constexpr (kDtype == kFloat16) return _mm_cvtss_f32(_mm_cvtph_ps(one));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_slli_epi32(one, 16)));
}

template <int kDtype>
void guide_all(const void* conditional, const void* unconditional, float cfg, float* guided,
               int64_t count) {
  const __m256 scale = _mm256_set1_ps(cfg);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __m256 value = load<kDtype>(conditional, i);
    if (unconditional != nullptr) {
      const __m256 base = load<kDtype>(unconditional, i);
      __m256 product = _mm256_mul_ps(scale, _mm256_sub_ps(value, base));
      __asm__("" : "+x"(product));  // rounds by itself: see common/guidance.h
      value = _mm256_add_ps(base, product);
    }
    _mm256_storeu_ps(guided + i, value);
  }
  for (; i < count; ++i) {
    const float c = load_one<kDtype>(conditional, i);
    guided[i] = unconditional == nullptr ? c : guide(c, load_one<kDtype>(unconditional, i), cfg);
  }
}

}  // namespace

const GuideLoops kGuideAvx2 = {{guide_all<kFloat32>, guide_all<kFloat16>, guide_all<kBFloat16>}};

}  // namespace bdk
