// The rotation of a token: its factors, choice of the instruction set.
#include "cpu/common/rotation.h"

#include "cpu/common/isa.h"

namespace bdk {
namespace {

const RotationRows& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kRotationAvx512;
  if (active_isa() == kAvx2) return kRotationAvx2;
#endif
  return kRotationRows;
}

}  // namespace

Rotation::Rotation(int64_t channels, bool interleaved, bool back)
    : turn_(interleaved ? choose().pairs : choose().halves),
      channels_(channels),
      interleaved_(interleaved),
      back_(back) {}

void Rotation::set(const float* freqs) {
  const int64_t half = channels_ / 2;
  for (int64_t i = 0; i < half; ++i) {
    const int64_t first = interleaved_ ? 2 * i : i;
    const int64_t second = interleaved_ ? first + 1 : first + half;
    // A rotation is orthogonal: its transpose rotates by the negative angle.
    const float sine = back_ ? -freqs[2 * i + 1] : freqs[2 * i + 1];
    cos_[first] = cos_[second] = freqs[2 * i];
    sin_[first] = -sine;
    sin_[second] = sine;
  }
}

}  // namespace bdk
