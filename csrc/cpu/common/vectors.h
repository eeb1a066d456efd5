// Vectors of float32, as long as those of the instruction set that the including file is compiled
// for.
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace bdk {
namespace {  // they differ between the files that include this

#ifdef __AVX512F__
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
using Vector = float __attribute__((vector_size(4 * kLanes)));

inline Vector load_vector(const float* from) {
  Vector v;
  memcpy(&v, from, sizeof v);
  return v;
}

// kLanes values, widened.
inline Vector load_vector(const int8_t* from) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#else
  Vector v;
  for (int i = 0; i < kLanes; ++i) v[i] = from[i];
  return v;
#endif
}

#ifdef __AVX2__
// Sums of the lanes, folded into eight.
inline __m256 eight_lanes(Vector v) {
#ifdef __AVX512F__
  const __m512 whole = (__m512)v;
  return _mm256_add_ps(_mm512_castps512_ps256(whole), _mm512_extractf32x8_ps(whole, 1));
#else
  return (__m256)v;
#endif
}
#endif

}  // namespace
}  // namespace bdk
