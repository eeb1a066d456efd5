// Splitting work over threads.
#pragma once

#include <stdint.h>

#include <atomic>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(_OPENMP) && defined(__unix__)
#include <pthread.h>
#endif

namespace bdk {

#ifdef _OPENMP
// OpenMP's threads do not survive a fork, and a child that uses them hangs. So a child of a process
// that has started threads here computes on one thread.
struct Threads {
  std::atomic<bool> taken{false};
  std::atomic<bool> lost{false};

  Threads() {
#ifdef __unix__
    pthread_atfork(nullptr, nullptr, [] { instance().lost = instance().taken.load(); });
#endif
  }
  static Threads& instance() {
    static Threads threads;
    return threads;
  }
  // Whether a loop may use more than the calling thread.
  static bool take() {
    if (instance().lost) return false;
    instance().taken = true;
    return true;
  }
};
#endif

// Calls body(begin, end) on disjoint ranges that cover [0, count). Each thread gets at least
// `grain` items; the length of every range but the last is a multiple of `align`.
template <class Body>
void parallel_for(int64_t count, int64_t grain, int64_t align, int threads, const Body& body) {
  int64_t parts = count / grain;
  if (parts > threads) parts = threads;
#ifdef _OPENMP
  if (parts > 1 && Threads::take()) {
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
