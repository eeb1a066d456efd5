// swiglu: entries, choice of the instruction set.
#include "cpu/swiglu.h"

#include "bitdance_kernels.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace bdk {
namespace {

// Results a thread must have to be worth starting: about 10 us.
constexpr int64_t kGrain = 16384;
constexpr SwigluRows kScalarRows = {swiglu_row, swiglu_backward_row};

const SwigluRows& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kSwigluAvx512;
  if (active_isa() == kAvx2) return kSwigluAvx2;
#endif
  return kScalarRows;
}

}  // namespace
}  // namespace bdk

int bdk_swiglu_cpu(const float* h, int64_t h_stride, float* y, int64_t rows, int64_t hidden,
                   int threads) {
  using namespace bdk;
  if (rows < 0 || hidden < 0 || threads < 1) return BDK_BAD_SIZE;
  const SwigluRows& kernel = choose();
  parallel_for(rows, kGrain / (hidden + 1) + 1, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) kernel.forward(h + r * h_stride, y + r * hidden, hidden);
  });
  return BDK_OK;
}

int bdk_swiglu_backward_cpu(const float* grad, int64_t grad_stride, const float* h,
                            int64_t h_stride, float* of_h, int64_t rows, int64_t hidden,
                            int threads) {
  using namespace bdk;
  if (rows < 0 || hidden < 0 || threads < 1) return BDK_BAD_SIZE;
  const SwigluRows& kernel = choose();
  parallel_for(rows, kGrain / (hidden + 1) + 1, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      kernel.backward(grad + r * grad_stride, h + r * h_stride, of_h + 2 * r * hidden, hidden);
    }
  });
  return BDK_OK;
}
