// csrc/cuda/common/load_store.cuh for the types of half.h.
#pragma once

#include "card.h"
#include "common/dtype.h"
#include "half.h"

namespace bdk {

inline float to_float(float x) { return x; }
template <class T>
float to_float(T x) {
  return widen(x.bits, T{});
}

template <class T>
T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    return T{narrow(x, T{})};
  }
}

inline float load_value(const void* table, int64_t i, int dtype) {
  if (dtype == kFloat16) return to_float(static_cast<const __half*>(table)[i]);
  if (dtype == kBFloat16) return to_float(static_cast<const __nv_bfloat16*>(table)[i]);
  return static_cast<const float*>(table)[i];
}

template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Vec {
  T at[kCount];
};

}  // namespace bdk
