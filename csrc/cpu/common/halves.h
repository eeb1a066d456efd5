// float16 and bfloat16 to float32 and back, one set of loops per instruction set.
#pragma once

#ifdef __F16C__
#include <immintrin.h>
#endif
#include <stdint.h>
#include <string.h>

#include "cpu/common/vectors.h"

namespace bdk {

struct HalfLoops {
  void (*widen)(const uint16_t* from, float* to, int64_t count);
  void (*narrow)(const float* from, uint16_t* to, int64_t count);  // to the nearest, ties to even
};

struct Halves {
  HalfLoops float16, bfloat16;
};

extern const Halves kHalvesAvx2, kHalvesAvx512;

namespace {  // the instructions differ between the files that include this

inline float float_from_pattern(uint32_t pattern) {
  float value;
  memcpy(&value, &pattern, sizeof value);
  return value;
}

inline uint32_t pattern_of(float value) {
  uint32_t pattern;
  memcpy(&pattern, &value, sizeof pattern);
  return pattern;
}

inline void widen_bfloat16(const uint16_t* from, float* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i)
    to[i] = float_from_pattern(static_cast<uint32_t>(from[i]) << 16);
}

inline uint16_t narrow_bfloat16_one(float value) {
  const uint32_t bits = pattern_of(value);
  const uint32_t rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
  // Keeps a NaN a NaN: its upper half alone may be infinity.
  const uint32_t kept = (bits & 0x7FFFFFFFu) > 0x7F800000u ? bits | 0x400000u : rounded;
  return static_cast<uint16_t>(kept >> 16);
}

inline void narrow_bfloat16(const float* from, uint16_t* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = narrow_bfloat16_one(from[i]);
}

inline float widen_float16_one(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t size = half & 0x7FFFu;
  if (size < 0x0400u) {  // zero and subnormals, in units of 2^-24
    return float_from_pattern(sign | pattern_of(static_cast<float>(size) * 0x1p-24f));
  }
  // The exponent's bias grows from 15 to 127; infinity and NaN keep an exponent of ones.
  return float_from_pattern(sign | ((size << 13) + (size >= 0x7C00u ? 0x70000000u : 0x38000000u)));
}

inline uint16_t narrow_float16_one(float value) {
  const uint32_t bits = pattern_of(value), size = bits & 0x7FFFFFFFu;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  if (size > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u | ((size >> 13) & 0x3FFu));
  if (size >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and more
  if (size < 0x38800000u) {  // below 2^-14: adding 1/2 leaves multiples of 2^-24, rounded
    const uint32_t units = pattern_of(float_from_pattern(size) + 0.5f) - 0x3F000000u;
    return static_cast<uint16_t>(sign | units);
  }
  const uint32_t rounded = size + 0xFFFu + ((size >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

inline void widen_float16(const uint16_t* from, float* to, int64_t count) {
  int64_t i = 0;
#ifdef __AVX512F__
  for (; i + 16 <= count; i += 16) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
    _mm512_storeu_ps(to + i, _mm512_cvtph_ps(half));
  }
#endif
#ifdef __F16C__
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(half));
  }
#endif
  for (; i < count; ++i) to[i] = widen_float16_one(from[i]);
}

inline void narrow_float16(const float* from, uint16_t* to, int64_t count) {
  int64_t i = 0;
#ifdef __AVX512F__
  for (; i + 16 <= count; i += 16) {
    const __m256i half = _mm512_cvtps_ph(_mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), half);
  }
#endif
#ifdef __F16C__
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), half);
  }
#endif
  for (; i < count; ++i) to[i] = narrow_float16_one(from[i]);
}

// A half as an element of memory.
struct Float16 {
  uint16_t bits;
  static Float16 of(float value) { return {narrow_float16_one(value)}; }
  explicit operator float() const { return widen_float16_one(bits); }
};
struct Bfloat16 {
  uint16_t bits;
  static Bfloat16 of(float value) { return {narrow_bfloat16_one(value)}; }
  explicit operator float() const { return float_from_pattern(static_cast<uint32_t>(bits) << 16); }
};

inline Vector load_vector(const Float16* from) {
#ifdef __AVX512F__
  return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
  return (Vector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  Vector v;
  for (int i = 0; i < kLanes; ++i) v[i] = static_cast<float>(from[i]);
  return v;
#endif
}

inline Vector load_vector(const Bfloat16* from) {
#ifdef __AVX512F__
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
#elif defined(__AVX2__)
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return (Vector)_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
#else
  Vector v;
  for (int i = 0; i < kLanes; ++i) v[i] = static_cast<float>(from[i]);
  return v;
#endif
}

// to[0 .. kLanes) = the vector, rounded.
inline void store_vector(Float16* to, Vector v) {
#ifdef __AVX512F__
  const __m256i halves = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
#elif defined(__F16C__)
  const __m128i halves = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), halves);
#else
  for (int i = 0; i < kLanes; ++i) to[i] = Float16::of(v[i]);
#endif
}

inline void store_vector(Bfloat16* to, Vector v) {
  using Signed = int32_t __attribute__((vector_size(sizeof(Vector))));
  using Unsigned = uint32_t __attribute__((vector_size(sizeof(Vector))));
  const Unsigned bits = (Unsigned)v;
  const Unsigned rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
  const auto nan =
      (Unsigned)((Signed)(bits & 0x7FFFFFFFu) > 0x7F800000);  // see narrow_bfloat16_one
  const Unsigned kept = (nan & (bits | 0x400000u)) | (~nan & rounded);
  using Upper = uint16_t __attribute__((vector_size(sizeof(Vector) / 2)));
  const Upper upper = __builtin_convertvector(kept >> 16, Upper);
  memcpy(to, &upper, sizeof upper);
}

constexpr Halves kHalvesHere = {{widen_float16, narrow_float16}, {widen_bfloat16, narrow_bfloat16}};

}  // namespace
}  // namespace bdk
