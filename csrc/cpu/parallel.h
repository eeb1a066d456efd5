// Splitting work over threads.
#pragma once

#include <stdint.h>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace bdk {

// Calls body(begin, end) on disjoint ranges that cover [0, count). A thread is worth its start only
// for `grain` items or more; every range but the last is a multiple of `align` items long.
template <class Body>
void parallel_for(int64_t count, int64_t grain, int64_t align, int threads, const Body& body) {
  int64_t parts = count / grain;
  if (parts > threads) parts = threads;
#ifdef _OPENMP
  if (parts > 1) {
    const int64_t step = ((count + parts - 1) / parts + align - 1) / align * align;
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static, 1)
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = part * step;
      const int64_t end = begin + step < count ? begin + step : count;
      if (begin < end) body(begin, end);
    }
    return;
  }
#endif
  (void)align;
  if (count > 0) body(0, count);
}

}  // namespace bdk
