// Every exported C function of the native kernels, once.
//
// Conventions. All functions return a status: 0 is success, a positive value is a cudaError_t, a
// negative one a bdk_status below; bdk_*_status_string puts it into words. They allocate nothing,
// throw nothing, print nothing. Sizes and strides are in elements, never bytes. `dtype` is a code
// of common/dtype.h. CPU functions use at most `threads` threads and return when the result is
// written. CUDA functions launch on `stream` of `device`, never synchronise, and can be captured in
// a graph.
//
// Bits. Bit = 1 exactly where the value is > 0 (+0, -0 and NaN give 0). Channel c is bit c % 8 of
// byte c / 8. Unpacked values are +1 and -1.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  BDK_OK = 0,
  BDK_BAD_DTYPE = -1,
  BDK_BAD_SIZE = -2,
} bdk_status;

// ---------------------------------------------------------------- the CPU library

const char* bdk_cpu_status_string(int status);

// Instruction sets: 0 scalar, 1 AVX2, 2 AVX-512. `isa` is what the kernels use: the best one that
// the processor has and that bdk_cpu_set_isa_limit allows (by default, any).
int bdk_cpu_isa_detected(void);
int bdk_cpu_isa(void);
int bdk_cpu_set_isa_limit(int limit);

// x: `rows` rows of `channels` values, one row every `row_stride`; packed: [rows, channels / 8].
int bdk_pack_signs_cpu(const void* x, uint8_t* packed, int64_t rows, int64_t channels,
                       int64_t row_stride, int dtype, int threads);

// packed: `rows` rows of `channels / 8` bytes, one row every `row_stride`; y: [rows, channels].
int bdk_unpack_signs_cpu(const uint8_t* packed, void* y, int64_t rows, int64_t channels,
                         int64_t row_stride, int dtype, int threads);

// x: `rows` rows of `channels` values, one row every `row_stride`; y: [rows, channels], +1 or -1;
// packed: [rows, channels / 8].
int bdk_lfq_quantize_cpu(const void* x, void* y, uint8_t* packed, int64_t rows, int64_t channels,
                         int64_t row_stride, int dtype, int threads);

// keys: [rows, 3] = (seed, 2 * AR step + stream, sample id); step: one value, counter word 1;
// normals: [rows, elements]; words_or_null: [rows, elements] or null, the words they were made of.
int bdk_noise_cpu(const int64_t* keys, int64_t rows, int64_t elements, const int64_t* step,
                  float* normals, uint32_t* words_or_null, int threads);

// ---------------------------------------------------------------- the CUDA library

const char* bdk_cuda_status_string(int status);

// Number of usable devices; a status < 0 or > 0 is never returned here: no driver means 0.
int bdk_cuda_device_count(void);

int bdk_pack_signs_cuda(const void* x, uint8_t* packed, int64_t rows, int64_t channels,
                        int64_t row_stride, int dtype, int device, void* stream);

int bdk_unpack_signs_cuda(const uint8_t* packed, void* y, int64_t rows, int64_t channels,
                          int64_t row_stride, int dtype, int device, void* stream);

int bdk_noise_cuda(const int64_t* keys, int64_t rows, int64_t elements, const int64_t* step,
                   float* normals, uint32_t* words_or_null, int device, void* stream);

#ifdef __cplusplus
}
#endif
