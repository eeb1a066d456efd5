// Large pages under large outputs.
#pragma once

#include <stdint.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace bdk {

// Asks the system to back a fresh output by pages of 2 MiB. An allocation of that size is not yet
// mapped, and its first writes then cost one page fault instead of 512: on an EPYC in a virtual
// machine 64 MiB take 6 instead of 25 ms. It is a hint; without huge pages nothing changes.
//
// Non-temporal stores gain nothing in fresh pages, whose lines the caches hold since the system has
// just cleared them: on a Xeon in a virtual machine they take longer. For outputs in memory that
// has been used before, as most large ones are, see streaming_pays() in isa.h.
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
