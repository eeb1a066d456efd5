// Classifier-free guidance of one value, the same bits in C++ and CUDA.
#pragma once

#include "common/host_device.h"

namespace bdk {

// u + cfg (c - u). Each operation rounds by itself: a fused multiply-add, which compilers like to
// form here, would change the signs of values near zero.
BDK_HOST_DEVICE static inline float guide(float conditional, float unconditional, float cfg) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(unconditional, __fmul_rn(cfg, __fsub_rn(conditional, unconditional)));
#else
  float product = cfg * (conditional - unconditional);
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
  __asm__("" : "+x"(product));  // hides from the compiler that this is a product
#elif defined(__GNUC__) && defined(__aarch64__)
  __asm__("" : "+w"(product));
#else
  volatile float rounded = product;
  product = rounded;
#endif
  return unconditional + product;
#endif
}

}  // namespace bdk
