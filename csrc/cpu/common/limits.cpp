// The limits: entries and choice of the instruction set.
#include "cpu/common/limits.h"

#include "bitdance_kernels.h"
#include "cpu/common/isa.h"

namespace bdk {
namespace {

Limits choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return limits_avx512();
  if (active_isa() == kAvx2) return limits_avx2();
#endif
  return kLimits;
}

}  // namespace
}  // namespace bdk

int bdk_limit_memory_cpu(const uint8_t* source, int64_t read, uint8_t* target, int64_t written,
                         int streaming, uint64_t* words) {
  using namespace bdk;
  const auto bad = [](const uint8_t* at, int64_t bytes) {
    return bytes < 0 || bytes % kLimitBytes || reinterpret_cast<uintptr_t>(at) % 64;
  };
  if (bad(source, read) || bad(target, written)) return BDK_BAD_SIZE;
  const Limits limits = choose();
  const int64_t both = read < written ? read : written;
  limits.copy(source, target, both, streaming);
  *words = limits.read(source + both, read - both);
  limits.write(target + both, written - both, streaming);
#ifdef BDK_X86
  if (streaming) _mm_sfence();
#endif
  return BDK_OK;
}

int bdk_limit_multiply_add_cpu(int64_t rounds, float factor, float term, float* sum,
                               int64_t* operations) {
  if (rounds < 0) return BDK_BAD_SIZE;
  *operations = rounds * bdk::choose().multiply_add(rounds, factor, term, sum);
  return BDK_OK;
}
