// swiglu: entries, choice of the instruction set.
#include "cpu/swiglu/swiglu.h"

#include <atomic>

#include "cpu/common/isa.h"
#include "cpu/common/parallel.h"
#include "cpu/common/wide_rows.h"

namespace bdk {
namespace {

// Results a thread must have to be worth starting: about 2 us.
constexpr int64_t kGrain = 4096;
constexpr SwigluRows kScalarRows = {swiglu_row<false>, nullptr, swiglu_backward_row};

const SwigluRows& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kSwigluAvx512;
  if (active_isa() == kAvx2) return kSwigluAvx2;
#endif
  return kScalarRows;
}

}  // namespace
}  // namespace bdk

int bdk_swiglu_cpu(bdk_rows h, bdk_rows y, int64_t rows, int64_t hidden, int threads) {
  using namespace bdk;
  if (!are_dtypes(h, y)) return BDK_BAD_DTYPE;
  if (rows < 0 || hidden < 0 || threads < 1) return BDK_BAD_SIZE;
  const SwigluRows& kernel = choose();
  const WideRows in(h), out(y);
  const bool streamed = kernel.stream != nullptr && streaming_pays(4 * rows * hidden) && out.wide();
  const auto forward = streamed ? kernel.stream : kernel.forward;
  parallel_for(rows, kGrain / (hidden + 1) + 1, 1, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float buffers[3][kRowTile];
    for_tiles(begin, end, hidden, [&](int64_t r, int64_t c, int64_t count) {
      const float* gate = in.read(r, c, count, buffers[0]);
      const float* value = in.read(r, hidden + c, count, buffers[1]);
      forward(gate, value, out.place(r, c, buffers[2]), count);
      out.put(r, c, count, buffers[2]);
    });
    if (streamed) std::atomic_thread_fence(std::memory_order_seq_cst);
  });
  return BDK_OK;
}

int bdk_swiglu_backward_cpu(bdk_rows grad, bdk_rows h, bdk_rows grad_h, int64_t rows,
                            int64_t hidden, int threads) {
  using namespace bdk;
  if (!are_dtypes(grad, h, grad_h)) return BDK_BAD_DTYPE;
  if (rows < 0 || hidden < 0 || threads < 1) return BDK_BAD_SIZE;
  const SwigluRows& kernel = choose();
  const WideRows in_grad(grad), in(h), out(grad_h);
  parallel_for(rows, kGrain / (hidden + 1) + 1, 1, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float buffers[5][kRowTile];
    for_tiles(begin, end, hidden, [&](int64_t r, int64_t c, int64_t count) {
      const float* gate = in.read(r, c, count, buffers[0]);
      const float* value = in.read(r, hidden + c, count, buffers[1]);
      kernel.backward(in_grad.read(r, c, count, buffers[2]), gate, value,
                      out.place(r, c, buffers[3]), out.place(r, hidden + c, buffers[4]), count);
      out.put(r, c, count, buffers[3]);
      out.put(r, hidden + c, count, buffers[4]);
    });
  });
  return BDK_OK;
}
