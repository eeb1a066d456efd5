// How large outputs are written: on large pages, and past the caches or through them.
#pragma once

#include <stdint.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace bdk {

// Asks the system to back a fresh output by pages of 2 MiB. Memory that large comes untouched from
// the system, and its first writes then cost one page fault in 512: on an EPYC in a virtual machine
// 64 MiB take 8 instead of 25 ms. A hint: where it cannot be had, nothing changes.
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

// Whether to write an output past the caches. It pays from the size on at which the output is not
// in a cache any more when it is read again. Memory of 32 MiB or more (the most that glibc's
// malloc keeps) always comes anew from the system, which has just cleared it: its lines are in the
// caches, and writing past them costs a second trip to memory. On a Xeon in a virtual machine 64
// MiB take 20 ms past the caches and 5 ms through them.
inline bool prefer_streaming(int64_t bytes) {
  return bytes >= int64_t{4} << 20 && bytes < int64_t{32} << 20;
}

}  // namespace bdk
