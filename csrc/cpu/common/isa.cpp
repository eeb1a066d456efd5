#include "cpu/common/isa.h"

#include <atomic>

#if defined(BDK_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "bitdance_kernels.h"

namespace bdk {
namespace {

// The system saves tiles at a switch of threads for a process that has asked for it.
bool ask_for_tiles() {
#if defined(BDK_X86) && defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  constexpr unsigned kTiles = 1u << 24 | 1u << 22, kBfloat16 = 1u << 5;
  unsigned a, b, c, d, more_a;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTiles) == kTiles &&
         __get_cpuid_count(7, 1, &more_a, &b, &c, &d) && (more_a & kBfloat16) != 0 &&
         syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

Isa detect() {
#ifdef BDK_X86
  // AVX-512: foundation, byte/word and the 256-bit forms. popcnt and F16C came before AVX2.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return ask_for_tiles() ? kAmx : kAvx512;
  }
  if (__builtin_cpu_supports("avx2")) return kAvx2;
#endif
  return kScalar;
}

const Isa kDetected = detect();
std::atomic<int> limit{kAmx};

Isa capped(Isa isa) {
  const int cap = limit.load(std::memory_order_relaxed);
  return cap < isa ? static_cast<Isa>(cap) : isa;
}

}  // namespace

Isa active_isa() { return capped(kDetected < kAvx512 ? kDetected : kAvx512); }

bool has_bfloat16_tiles() { return capped(kDetected) == kAmx; }

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

int bdk_cpu_isa(void) { return bdk::capped(bdk::kDetected); }

int bdk_cpu_set_isa_limit(int limit) {
  if (limit < bdk::kScalar || limit > bdk::kAmx) return BDK_BAD_SIZE;
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
