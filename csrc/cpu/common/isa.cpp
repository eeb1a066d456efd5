#include "cpu/common/isa.h"

#include <atomic>

#include "bitdance_kernels.h"

namespace bdk {
namespace {

Isa detect() {
#ifdef BDK_X86
  // AVX-512: foundation, byte/word and the 256-bit forms. popcnt and F16C came before AVX2.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return kAvx512;
  }
  if (__builtin_cpu_supports("avx2")) return kAvx2;
#endif
  return kScalar;
}

const Isa kDetected = detect();
std::atomic<int> limit{kAvx512};

}  // namespace

Isa active_isa() {
  const int cap = limit.load(std::memory_order_relaxed);
  return cap < kDetected ? static_cast<Isa>(cap) : kDetected;
}

bool streaming_pays(int64_t bytes) {
#ifdef BDK_X86
  static const bool amd = __builtin_cpu_is("amd");
  return bytes >= (amd ? int64_t{4} << 20 : int64_t{32} << 20);
#else
  (void)bytes;
  return false;
#endif
}

}  // namespace bdk

int bdk_cpu_isa_detected(void) { return bdk::kDetected; }

int bdk_cpu_isa(void) { return bdk::active_isa(); }

int bdk_cpu_set_isa_limit(int limit) {
  if (limit < bdk::kScalar || limit > bdk::kAvx512) return BDK_BAD_SIZE;
  bdk::limit.store(limit, std::memory_order_relaxed);
  return BDK_OK;
}

const char* bdk_cpu_status_string(int status) {
  switch (status) {
    case BDK_OK:
      return "success";
    case BDK_BAD_DTYPE:
      return "dtype code not handled";
    case BDK_BAD_SIZE:
      return "size or argument out of range";
    case BDK_BAD_INDEX:
      return "index out of range";
    default:
      return "unknown status";
  }
}
