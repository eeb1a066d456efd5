// The inner loops of pack_signs, one set per instruction set: eight adjacent values to one byte.
//
// They walk through four parts of their range at once. The processor prefetches each part as a
// stream of its own, so one core keeps more cache lines in flight: on a Zen 3 EPYC 64 MiB take
// 4.7 ms as one stream, 4.0 as two, 2.9 as four and 3.0 as eight; software prefetching adds
// nothing.
#pragma once

#include <stdint.h>

namespace bdk {

// x: 8 * bytes patterns; see common/dtype.h for `infinity`.
using PackSigns32 = void (*)(const uint32_t* x, uint8_t* packed, int64_t bytes);
using PackSigns8 = void (*)(const uint8_t* x, uint8_t* packed, int64_t bytes);
using PackSigns16 = void (*)(const uint16_t* x, uint8_t* packed, int64_t bytes, uint16_t infinity);

void pack_signs_8_avx2(const uint8_t* x, uint8_t* packed, int64_t bytes);
void pack_signs_8_avx512(const uint8_t* x, uint8_t* packed, int64_t bytes);
void pack_signs_32_avx2(const uint32_t* x, uint8_t* packed, int64_t bytes);
void pack_signs_16_avx2(const uint16_t* x, uint8_t* packed, int64_t bytes, uint16_t infinity);
void pack_signs_32_avx512(const uint32_t* x, uint8_t* packed, int64_t bytes);
void pack_signs_16_avx512(const uint16_t* x, uint8_t* packed, int64_t bytes, uint16_t infinity);

// The function for the instruction set of active_isa().
PackSigns32 choose_pack_signs_32();
PackSigns16 choose_pack_signs_16();

// Calls body(offset) for every multiple of kStep that leaves room for a step, in turns for equal
// parts of the range; returns the end. Static: every file compiles it for its instruction set.
template <int kStep, class Body>
static inline int64_t in_streams(int64_t bytes, const Body& body) {
  constexpr int kStreams = 4;
  const int64_t part = bytes / (kStreams * kStep) * kStep;
  for (int64_t i = 0; i < part; i += kStep) {
#pragma GCC unroll 4
    for (int stream = 0; stream < kStreams; ++stream) body(stream * part + i);
  }
  int64_t i = kStreams * part;
  for (; i + kStep <= bytes; i += kStep) body(i);  // fewer than kStreams
  return i;
}

}  // namespace bdk
