// What the processor does at most with memory and with multiply-adds, one per instruction set.
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef BDK_X86
#include <immintrin.h>
#endif

#include "cpu/common/vectors.h"

namespace bdk {

// All sizes are multiples of kLimitBytes, all addresses of 64.
constexpr int64_t kLimitBytes = 256;

struct Limits {
  uint64_t (*read)(const uint8_t* from, int64_t bytes);
  void (*write)(uint8_t* to, int64_t bytes, int streaming);
  void (*copy)(const uint8_t* from, uint8_t* to, int64_t bytes, int streaming);
  // Operations of a round, each a multiply and an add to a sum of its own, which is returned.
  int64_t (*multiply_add)(int64_t rounds, float factor, float term, float* sum);
};
Limits limits_avx2();
Limits limits_avx512();

namespace {  // they differ between the files that include this

using Words = uint64_t __attribute__((vector_size(4 * kLanes)));
constexpr int64_t kVector = sizeof(Words);

inline Words load(const uint8_t* from) {
  Words words;
  memcpy(&words, from, sizeof words);
  return words;
}

inline void store(uint8_t* to, Words words, bool streaming) {
#ifdef __AVX512F__
  if (streaming) return _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)words);
#elif defined(__AVX2__)
  if (streaming) return _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)words);
#elif defined(BDK_X86)
  if (streaming) return _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)words);
#endif
  (void)streaming;
  memcpy(to, &words, sizeof words);
}

// XOR of the 64-bit words. Four streams: a processor looks ahead in each by itself.
uint64_t read_all(const uint8_t* from, int64_t bytes) {
  const int64_t part = bytes / 4;
  Words sums[4] = {};
  for (int64_t i = 0; i < part; i += kVector) {
    for (int k = 0; k < 4; ++k) sums[k] ^= load(from + k * part + i);
  }
  const Words all = (sums[0] ^ sums[1]) ^ (sums[2] ^ sums[3]);
  uint64_t found = 0;
  for (int64_t i = 0; i < kVector / 8; ++i) found ^= all[i];
  return found;
}

void write_all(uint8_t* to, int64_t bytes, int streaming) {
  const Words zero = {};
  if (streaming) {
    for (int64_t i = 0; i < bytes; i += kVector) store(to + i, zero, true);
  } else {
    for (int64_t i = 0; i < bytes; i += kVector) store(to + i, zero, false);
  }
}

void copy_all(const uint8_t* from, uint8_t* to, int64_t bytes, int streaming) {
  if (streaming) {
    for (int64_t i = 0; i < bytes; i += kVector) store(to + i, load(from + i), true);
  } else {
    for (int64_t i = 0; i < bytes; i += kVector) store(to + i, load(from + i), false);
  }
}

inline Vector multiplied_and_added(Vector factor, Vector sum, Vector term) {
#ifdef __AVX512F__
  return (Vector)_mm512_fmadd_ps((__m512)factor, (__m512)sum, (__m512)term);
#elif defined(__AVX2__)
  return (Vector)_mm256_fmadd_ps((__m256)factor, (__m256)sum, (__m256)term);
#else
  return factor * sum + term;
#endif
}

// More sums than the latency of an instruction times its units; they stay in registers.
int64_t multiply_add_all(int64_t rounds, float factor, float term, float* sum) {
  constexpr int kSums = 12;
  Vector sums[kSums];
  // The compiler would compute sums that it knows to be equal once.
  volatile float zero = 0.0f;
  for (int k = 0; k < kSums; ++k) sums[k] = Vector{} + zero;
  const Vector factors = Vector{} + factor, terms = Vector{} + term;
  for (int64_t i = 0; i < rounds; ++i) {
    for (int k = 0; k < kSums; ++k) sums[k] = multiplied_and_added(factors, sums[k], terms);
  }
  *sum = 0;
  for (int k = 0; k < kSums; ++k) {
    for (int j = 0; j < kLanes; ++j) *sum += sums[k][j];
  }
  return 2 * kSums * kLanes;
}

constexpr Limits kLimits = {read_all, write_all, copy_all, multiply_add_all};

}  // namespace
}  // namespace bdk
