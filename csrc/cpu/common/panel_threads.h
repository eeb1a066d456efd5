// Division of products with panels among threads.
#pragma once

#include "cpu/common/panels.h"
#include "cpu/common/parallel.h"

namespace bdk {

// Multiply-adds a thread must have to be worth starting: about 3 us.
constexpr int64_t kProductGrain = int64_t{1} << 17;

// use(panel, panel_end, row, row_end): threads take panels, so that each reads weights of its own,
// or rows where there are more.
template <class Use>
void in_panels(int64_t rows, int64_t channels, int64_t features, int threads, const Use& use) {
  const int64_t panels = features / kPanel;
  if (panels >= rows) {
    const int64_t grain = kProductGrain / (rows * channels * kPanel + 1) + 1;
    parallel_for(panels, grain, 1, threads,
                 [&](int64_t begin, int64_t end) { use(begin, end, int64_t{0}, rows); });
  } else {
    const int64_t grain = kProductGrain / (features * channels + 1) + 1;
    parallel_for(rows, grain, 1, threads,
                 [&](int64_t begin, int64_t end) { use(int64_t{0}, panels, begin, end); });
  }
}

}  // namespace bdk
