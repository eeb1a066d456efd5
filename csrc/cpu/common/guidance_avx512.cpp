// Guided predictions with AVX-512.
#include <immintrin.h>

#include "common/dtype.h"
#include "cpu/common/guidance.h"

namespace bdk {
namespace {

template <int kDtype>
__m512 load(const void* values, int64_t i, __mmask16 inside) {
  if constexpr (kDtype == kFloat32) {
    return _mm512_maskz_loadu_ps(inside, static_cast<const float*>(values) + i);
  } else {
    const __m256i half = _mm256_maskz_loadu_epi16(inside, static_cast<const uint16_t*>(values) + i);
    if constexpr (kDtype == kFloat16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
}

template <int kDtype>
void guide_all(const void* conditional, const void* unconditional, float cfg, float* guided,
               int64_t count) {
  const __m512 scale = _mm512_set1_ps(cfg);
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t left = count - i;
    const __mmask16 inside = static_cast<__mmask16>(left < 16 ? (1u << left) - 1u : 0xFFFFu);
    __m512 value = load<kDtype>(conditional, i, inside);
    if (unconditional != nullptr) {
      const __m512 base = load<kDtype>(unconditional, i, inside);
      __m512 product = _mm512_mul_ps(scale, _mm512_sub_ps(value, base));
      __asm__("" : "+v"(product));  // rounds by itself: see common/guidance.h
      value = _mm512_add_ps(base, product);
    }
    _mm512_mask_storeu_ps(guided + i, inside, value);
  }
}

}  // namespace

const GuideLoops kGuideAvx512 = {{guide_all<kFloat32>, guide_all<kFloat16>, guide_all<kBFloat16>}};

}  // namespace bdk
