// The inner loops of pack_signs, one set per instruction set: eight adjacent values to one byte.
#pragma once

#include <stdint.h>

namespace bdk {

// x: 8 * bytes patterns; see common/dtype.h for `infinity`. `prefetch` asks for loads ahead of use,
// for inputs too large to be in a cache.
using PackSigns32 = void (*)(const uint32_t* x, uint8_t* packed, int64_t bytes, bool prefetch);
using PackSigns16 = void (*)(const uint16_t* x, uint8_t* packed, int64_t bytes, bool prefetch,
                             uint16_t infinity);

void pack_signs_32_avx2(const uint32_t* x, uint8_t* packed, int64_t bytes, bool prefetch);
void pack_signs_16_avx2(const uint16_t* x, uint8_t* packed, int64_t bytes, bool prefetch,
                        uint16_t infinity);
void pack_signs_32_avx512(const uint32_t* x, uint8_t* packed, int64_t bytes, bool prefetch);
void pack_signs_16_avx512(const uint16_t* x, uint8_t* packed, int64_t bytes, bool prefetch,
                          uint16_t infinity);

}  // namespace bdk
