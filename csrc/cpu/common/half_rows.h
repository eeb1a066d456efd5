// Rows of halves for the modulated norm: read once, and written as they are computed.
#pragma once

#include "cpu/common/halves.h"
#include "cpu/common/rows.h"

namespace bdk {
namespace {

// A row of halves, which is kept in float32 as it is read.
template <class Half>
struct WidenedRow {
  const Half* x;
  float* wide;
  Vector vector(int64_t c) const {
    const Vector v = load_vector(x + c);
    memcpy(wide + c, &v, sizeof v);
    return v;
  }
  float value(int64_t c) const { return wide[c] = static_cast<float>(x[c]); }
};

// row_modulate of a float32 row with scale, shift and results of halves; weight and bias are both
// given or both null.
template <class Half>
inline void modulate_halves(const float* x, Moments m, const Half* scale, const Half* shift,
                            const float* weight, const float* bias, Half* y, int64_t channels) {
  int64_t c = 0;
  if (weight == nullptr) {
    for (; c + kLanes <= channels; c += kLanes) {
      const Vector unit = (load_vector(x + c) - m.mean) * m.rstd;
      store_vector(y + c, unit * (1.0f + load_vector(scale + c)) + load_vector(shift + c));
    }
  } else {
    for (; c + kLanes <= channels; c += kLanes) {
      const Vector unit = (load_vector(x + c) - m.mean) * m.rstd;
      const Vector normed = unit * load_vector(weight + c) + load_vector(bias + c);
      store_vector(y + c, normed * (1.0f + load_vector(scale + c)) + load_vector(shift + c));
    }
  }
  for (; c < channels; ++c) {
    float normed = (x[c] - m.mean) * m.rstd;
    if (weight != nullptr) normed = normed * weight[c] + bias[c];
    y[c] = Half::of(normed * (1.0f + static_cast<float>(scale[c])) + static_cast<float>(shift[c]));
  }
}

template <class Half>
inline const Half* as_halves(const uint16_t* row) {
  return reinterpret_cast<const Half*>(row);
}
template <class Half>
inline Half* as_halves(uint16_t* row) {
  return reinterpret_cast<Half*>(row);
}

}  // namespace
}  // namespace bdk
