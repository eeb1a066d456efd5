// The inner loops of lfq_quantize, one set per instruction set: eight adjacent values to eight
// values of +1 or -1 and to one byte.
#pragma once

#include <stdint.h>

namespace bdk {

// x, y: 8 * bytes patterns; see common/dtype.h for `infinity` and `one`.
using LfqQuantize32 = void (*)(const uint32_t* x, uint32_t* y, uint8_t* packed, int64_t bytes);
using LfqQuantize16 = void (*)(const uint16_t* x, uint16_t* y, uint8_t* packed, int64_t bytes,
                               uint16_t infinity, uint16_t one);

void lfq_quantize_32_avx2(const uint32_t* x, uint32_t* y, uint8_t* packed, int64_t bytes);
void lfq_quantize_16_avx2(const uint16_t* x, uint16_t* y, uint8_t* packed, int64_t bytes,
                          uint16_t infinity, uint16_t one);
void lfq_quantize_32_avx512(const uint32_t* x, uint32_t* y, uint8_t* packed, int64_t bytes);
void lfq_quantize_16_avx512(const uint16_t* x, uint16_t* y, uint8_t* packed, int64_t bytes,
                            uint16_t infinity, uint16_t one);

}  // namespace bdk
