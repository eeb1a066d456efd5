// The inner loops of unpack_signs, one set per instruction set: one byte to eight adjacent values.
#pragma once

#include <stdint.h>

namespace bdk {

// y: 8 * bytes patterns; `one` is the pattern of +1 in the 16-bit format.
using UnpackSigns32 = void (*)(const uint8_t* packed, uint32_t* y, int64_t bytes);
using UnpackSigns16 = void (*)(const uint8_t* packed, uint16_t* y, int64_t bytes, uint16_t one);

void unpack_signs_32_avx2(const uint8_t* packed, uint32_t* y, int64_t bytes);
void unpack_signs_16_avx2(const uint8_t* packed, uint16_t* y, int64_t bytes, uint16_t one);
void unpack_signs_32_avx512(const uint8_t* packed, uint32_t* y, int64_t bytes);
void unpack_signs_16_avx512(const uint8_t* packed, uint16_t* y, int64_t bytes, uint16_t one);

// The same with non-temporal stores; y is aligned to eight patterns. A reader in another thread
// needs a fence first.
void stream_signs_32_avx2(const uint8_t* packed, uint32_t* y, int64_t bytes);
void stream_signs_16_avx2(const uint8_t* packed, uint16_t* y, int64_t bytes, uint16_t one);
void stream_signs_32_avx512(const uint8_t* packed, uint32_t* y, int64_t bytes);
void stream_signs_16_avx512(const uint8_t* packed, uint16_t* y, int64_t bytes, uint16_t one);

// The function for the instruction set of active_isa(); with non-temporal stores if it has them.
UnpackSigns32 choose_unpack_signs_32(bool streamed = false);
UnpackSigns16 choose_unpack_signs_16(bool streamed = false);

}  // namespace bdk
