// Large pages under large outputs.
#pragma once

#include <stdint.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace bdk {

// Asks the system to back a fresh output by pages of 2 MiB. Memory that large comes untouched from
// the system, and its first writes then cost one page fault in 512: on an EPYC in a virtual machine
// 64 MiB take 6 instead of 25 ms. A hint: where it cannot be had, nothing changes.
//
// Fresh outputs are written through the caches: the system has just cleared their pages, so their
// lines are there. On the EPYC streaming stores took 7 ms; on a Xeon in a virtual machine four
// times as long. Outputs in memory that has been used before are another case: streaming_pays() in
// isa.h.
inline void prefer_large_pages(void* output, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(output) + kPage - 1) / kPage * kPage;
  const uintptr_t end =
      (reinterpret_cast<uintptr_t>(output) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)output;
  (void)bytes;
#endif
}

}  // namespace bdk
