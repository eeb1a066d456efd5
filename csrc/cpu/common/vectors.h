// Vectors of float32, as long as those of the instruction set that the including file is compiled
// for.
#pragma once

#include <stdint.h>
#include <string.h>

#include <utility>

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

// For functions that have to be inlined before GCC decides which arrays stay in registers.
#define BDK_INLINE __attribute__((always_inline))

BDK_INLINE inline Vector broadcast(float value) { return value - Vector{}; }

// Adds a * b to a sum, rounding once where the instruction set can. In assembly, since GCC would
// put some of many results in the registers of their factors, and copy them back.
BDK_INLINE inline void multiply_add(Vector& sum, Vector a, Vector b) {
#ifdef __AVX2__
  Vector result = sum;
  __asm__("vfmadd231ps %2, %1, %0" : "+v"(result) : "v"(a), "v"(b));
  sum = result;
#else
  sum += a * b;
#endif
}

// use(0), ..., use(kCount - 1), each with a constant: arrays that `use` indexes stay in registers
// if it is BDK_INLINE too, while an array in a loop is in memory when GCC unrolls the loop.
template <class Use, int... kNumbers>
BDK_INLINE inline void repeat(const Use& use, std::integer_sequence<int, kNumbers...>) {
  (use(std::integral_constant<int, kNumbers>()), ...);
}
template <int kCount, class Use>
BDK_INLINE inline void repeat(const Use& use) {
  repeat(use, std::make_integer_sequence<int, kCount>());
}

// Half as many values of double.
using DoubleVector = double __attribute__((vector_size(sizeof(Vector))));

// The values of a vector as doubles, the first half and the second.
struct WideVector {
  DoubleVector halves[2];
  explicit WideVector(Vector v) {
#if defined(__AVX512F__)
    halves[0] = (DoubleVector)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
    halves[1] = (DoubleVector)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
#elif defined(__AVX2__)
    halves[0] = (DoubleVector)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
    halves[1] = (DoubleVector)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#else
    for (int i = 0; i < kLanes; ++i) halves[2 * i / kLanes][i % (kLanes / 2)] = v[i];
#endif
  }
};

// A sum in double of what vectors give, in chains, since the additions of a chain wait for each
// other.
class DoubleSum {
 public:
  static constexpr int kChains = 4;
  void add(int chain, DoubleVector values) { chains_[chain] += values; }
  double total() const {
    double sum = 0.0;
    for (int i = 0; i < kLanes / 2; ++i) {
      sum += (chains_[0][i] + chains_[1][i]) + (chains_[2][i] + chains_[3][i]);
    }
    return sum;
  }

 private:
  DoubleVector chains_[kChains] = {};
};

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
