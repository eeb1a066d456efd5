// Splitting work over threads, for ThreadSanitizer: in place of csrc/cpu/common/parallel.h.
//
// The sanitizer does not see how GCC's OpenMP orders its threads, and reports races that are none.
// It knows the threads of C++. Every loop is divided, however small it is, since the order of
// accesses does not depend on how long they take.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#include <algorithm>
#include <thread>
#include <vector>

namespace bdk {

// Items that a range has in common with the next one: none, or with BDK_PLANTED_RACE in the
// environment one, which two threads then write.
inline int64_t planted_overlap() {
  static const bool planted = getenv("BDK_PLANTED_RACE") != nullptr;
  return planted ? 1 : 0;
}

template <class Body>
void parallel_for(int64_t count, int64_t /*grain*/, int64_t align, int threads, const Body& body) {
  if (count <= 0) return;
  const int64_t parts = std::min(count, int64_t{threads});
  const int64_t step = ((count + parts - 1) / parts + align - 1) / align * align;
  const auto end_of = [&](int64_t begin) {
    return std::min(begin + step + planted_overlap(), count);
  };
  std::vector<std::thread> others;
  for (int64_t begin = step; begin < count; begin += step) {
    others.emplace_back([&body, begin, end = end_of(begin)] { body(begin, end); });
  }
  body(int64_t{0}, end_of(0));
  for (std::thread& other : others) other.join();
}

}  // namespace bdk
