// Guided predictions: scalar loops, choice of the instruction set.
#include "cpu/common/guidance.h"

#include <string.h>

#include "common/dtype.h"
#include "common/guidance.h"
#include "cpu/common/isa.h"

namespace bdk {
namespace {

float float_from_pattern(uint32_t pattern) {
  float value;
  memcpy(&value, &pattern, sizeof value);
  return value;
}

float widen_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t size = half & 0x7FFFu;
  if (size < 0x0400u) {  // zero and subnormals, in units of 2^-24
    const float value = static_cast<float>(size) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  // The exponent's bias grows from 15 to 127; infinity and NaN keep an exponent of ones.
  const uint32_t bias = size >= kInfinity16 ? 0x70000000u : 0x38000000u;
  return float_from_pattern(sign | ((size << 13) + bias));
}

struct Float32 {
  static float at(const void* values, int64_t i) { return static_cast<const float*>(values)[i]; }
};
struct Float16 {
  static float at(const void* values, int64_t i) {
    return widen_half(static_cast<const uint16_t*>(values)[i]);
  }
};
struct BFloat16 {
  static float at(const void* values, int64_t i) {
    return float_from_pattern(static_cast<uint32_t>(static_cast<const uint16_t*>(values)[i]) << 16);
  }
};

template <class Dtype>
void guide_scalar(const void* conditional, const void* unconditional, float cfg, float* guided,
                  int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float c = Dtype::at(conditional, i);
    guided[i] = unconditional == nullptr ? c : guide(c, Dtype::at(unconditional, i), cfg);
  }
}

constexpr GuideLoops kGuideScalar = {
    {guide_scalar<Float32>, guide_scalar<Float16>, guide_scalar<BFloat16>}};

}  // namespace

Guide choose_guide(int dtype) {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kGuideAvx512.by_dtype[dtype];
  if (active_isa() == kAvx2) return kGuideAvx2.by_dtype[dtype];
#endif
  return kGuideScalar.by_dtype[dtype];
}

}  // namespace bdk
