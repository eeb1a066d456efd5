// Box-Muller in vectors: the logarithm and the sine and cosine of the samplers' uniforms, within
// about one unit in the last place, without branches or tables.
//
// The logarithm splits off the exponent so that the mantissa lies in [sqrt(1/2), sqrt(2)), where a
// polynomial approximates it (as in S. Moshier's Cephes library). The angle is a uniform number of
// turns, so quarter turns split off exactly, without a product by an inexact pi. The polynomials
// are minimax fits of ln(1 + f), sin(pi f / 2) and cos(pi f / 2), weighted by the functions' own
// size.
#pragma once

#include <stdint.h>
#include <string.h>

namespace bdk {
namespace {  // the vectors differ between the files that include this

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
using Float = float __attribute__((vector_size(4 * kLanes)));
using Int = int32_t __attribute__((vector_size(4 * kLanes)));
using Word = uint32_t __attribute__((vector_size(4 * kLanes)));

template <class To, class From>
inline To pattern(From from) {
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// (0, 1], in steps of 2^-24.
inline Float uniform(Word word) {
  return (__builtin_convertvector(pattern<Int>(word >> 8), Float) + 0.5f) * 0x1p-24f;
}

// ln u for a normal u > 0.
inline Float logarithm(Float u) {
  const Int bits = pattern<Int>(u);
  const Int power = (bits - 0x3F3504F3) >> 23;  // 0x3F3504F3 is the pattern of sqrt(1/2)
  const Float f = pattern<Float>(bits - (power << 23)) - 1.0f;
  const Float e = __builtin_convertvector(power, Float);
  Float p = f * -0.0763442991f + 0.127615504f;
  p = p * f + -0.131601951f;
  p = p * f + 0.142017625f;
  p = p * f + -0.166233565f;
  p = p * f + 0.200012267f;
  p = p * f + -0.250008211f;
  p = p * f + 0.333333317f;
  // ln 2 in two parts: products with the larger one are exact.
  const Float rest = f * f * (p * f + -0.5f) + e * -2.12194440e-4f;
  return rest + f + e * 0.693359375f;
}

// Sine and cosine of `turns` in [0, 1].
inline void sine_and_cosine(Float turns, Float& sine, Float& cosine) {
  const Float quarters = turns * 4.0f;
  const Float shifted = quarters + 12582912.0f;  // 1.5 2^23: rounds to an integer
  const Int n = pattern<Int>(shifted);           // its lowest bits are those of the integer
  const Float f = quarters - (shifted - 12582912.0f);
  const Float z = f * f;
  Float s = z * -0.00460217699f + 0.0796802281f;
  s = s * z + -0.645963479f;
  s = (s * z + 1.57079632f) * f;
  Float c = z * 0.000904021634f + -0.0208602885f;
  c = c * z + 0.253669244f;
  c = c * z + -1.23370054f;
  c = c * z + 1.0f;
  const Int odd = -(n & 1);  // all ones where the quarter turn swaps sine and cosine
  const Int exchange = (pattern<Int>(s) ^ pattern<Int>(c)) & odd;
  sine = pattern<Float>((pattern<Int>(s) ^ exchange) ^ ((n & 2) << 30));
  cosine = pattern<Float>((pattern<Int>(c) ^ exchange) ^ (((n + 1) & 2) << 30));
}

}  // namespace
}  // namespace bdk
