// gated_residual: entries, choice of the instruction set.
#include "cpu/gated_residual/gated_residual.h"

#include <atomic>

#include "cpu/common/isa.h"
#include "cpu/common/parallel.h"
#include "cpu/common/wide_rows.h"

namespace bdk {
namespace {

// Elements a thread must have to be worth starting: about 2 us.
constexpr int64_t kGrain = 4096;
// Elements that threads' parts of adjacent rows are multiples of: whole cache lines.
constexpr int64_t kAlign = 32;
constexpr GatedResidualRows kScalarRows = gated_residual_rows(nullptr);

const GatedResidualRows& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kGatedResidualAvx512;
  if (active_isa() == kAvx2) return kGatedResidualAvx2;
#endif
  return kScalarRows;
}

}  // namespace
}  // namespace bdk

int bdk_gated_residual_cpu(bdk_rows x, bdk_rows h, bdk_rows gate, bdk_rows y, int64_t rows,
                           int64_t channels, int threads) {
  using namespace bdk;
  if (!are_dtypes(x, h, gate, y)) return BDK_BAD_DTYPE;
  if (rows < 0 || channels < 0 || threads < 1) return BDK_BAD_SIZE;
  const GatedResidualRows& kernel = choose();
  const WideRows in_x(x), in_h(h), in_gate(gate), out(y);
  const bool streamed =
      kernel.stream != nullptr && streaming_pays(4 * rows * channels) && out.wide();
  const auto forward = streamed ? kernel.stream : kernel.forward;
  const auto fence = [streamed] {
    if (streamed) std::atomic_thread_fence(std::memory_order_seq_cst);
  };
  const auto follows = [channels](bdk_rows of) { return of.stride == channels && of.repeat == 1; };
  const bool adjacent = follows(x) && follows(h) && follows(gate) && follows(y);
  if (adjacent && all_wide(x, h, gate, y)) {  // one long row
    parallel_for(rows * channels, kGrain, kAlign, threads, [&](int64_t begin, int64_t end) {
      forward(in_x.place(0, begin, nullptr), in_h.place(0, begin, nullptr),
              in_gate.place(0, begin, nullptr), out.place(0, begin, nullptr), end - begin);
      fence();
    });
    return BDK_OK;
  }
  if (all_halves(x, h, gate, y)) {
    const auto halves = y.dtype == kFloat16 ? kernel.float16 : kernel.bfloat16;
    if (adjacent) {
      parallel_for(rows * channels, kGrain, kAlign, threads, [&](int64_t begin, int64_t end) {
        halves(in_x.halves(0) + begin, in_h.halves(0) + begin, in_gate.halves(0) + begin,
               out.halves(0) + begin, end - begin);
      });
      return BDK_OK;
    }
    parallel_for(rows, kGrain / (channels + 1) + 1, 1, threads, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        halves(in_x.halves(r), in_h.halves(r), in_gate.halves(r), out.halves(r), channels);
      }
    });
    return BDK_OK;
  }
  if (all_wide(x, h, gate, y)) {
    parallel_for(rows, kGrain / (channels + 1) + 1, 1, threads, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        forward(in_x.read(r, 0, channels, nullptr), in_h.read(r, 0, channels, nullptr),
                in_gate.read(r, 0, channels, nullptr), out.place(r, 0, nullptr), channels);
      }
      fence();
    });
    return BDK_OK;
  }
  parallel_for(rows, kGrain / (channels + 1) + 1, 1, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float buffers[4][kRowTile];
    for_tiles(begin, end, channels, [&](int64_t r, int64_t c, int64_t count) {
      forward(in_x.read(r, c, count, buffers[0]), in_h.read(r, c, count, buffers[1]),
              in_gate.read(r, c, count, buffers[2]), out.place(r, c, buffers[3]), count);
      out.put(r, c, count, buffers[3]);
    });
    fence();
  });
  return BDK_OK;
}

int bdk_gated_residual_adaln_cpu(bdk_rows x, bdk_rows h, bdk_rows gate, bdk_rows scale,
                                 bdk_rows shift, const float* weight_or_null,
                                 const float* bias_or_null, bdk_rows y, bdk_rows z, int64_t rows,
                                 int64_t channels, float eps, int threads) {
  using namespace bdk;
  if (!are_dtypes(x, h, gate, scale, shift, y, z)) return BDK_BAD_DTYPE;
  if (rows < 0 || channels <= 0 || threads < 1) return BDK_BAD_SIZE;
  if (channels > kMaxHalves && !all_wide(x, h, gate, scale, shift, y, z)) return BDK_BAD_SIZE;
  const GatedResidualRows& kernel = choose();
  const WideRows in_x(x), in_h(h), in_gate(gate), in_scale(scale), in_shift(shift), sum(y), out(z);
  const bool pair = (weight_or_null == nullptr) == (bias_or_null == nullptr);
  if (pair && all_halves(x, h, gate, scale, shift, y, z)) {
    const auto forward = z.dtype == kFloat16 ? kernel.float16_norm : kernel.bfloat16_norm;
    parallel_for(rows, kGrain / channels + 1, 1, threads, [&](int64_t begin, int64_t end) {
      alignas(64) float buffer[kMaxHalves];
      for (int64_t r = begin; r < end; ++r) {
        forward(in_x.halves(r), in_h.halves(r), in_gate.halves(r), sum.halves(r),
                in_scale.halves(r), in_shift.halves(r), weight_or_null, bias_or_null, out.halves(r),
                buffer, channels, eps);
      }
    });
    return BDK_OK;
  }
  parallel_for(rows, kGrain / channels + 1, 1, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float buffers[4][kMaxHalves];
    for (int64_t r = begin; r < end; ++r) {
      float* sum_row = sum.place(r, 0, buffers[3]);
      kernel.forward(in_x.read(r, 0, channels, buffers[0]), in_h.read(r, 0, channels, buffers[1]),
                     in_gate.read(r, 0, channels, buffers[2]), sum_row, channels);
      sum.put(r, 0, channels, sum_row);
      kernel.norm(sum.read(r, 0, channels, buffers[3]),  // as it is stored
                  in_scale.read(r, 0, channels, buffers[0]),
                  in_shift.read(r, 0, channels, buffers[1]), weight_or_null, bias_or_null,
                  out.place(r, 0, buffers[2]), channels, eps);
      out.put(r, 0, channels, buffers[2]);
    }
  });
  return BDK_OK;
}

int bdk_gated_residual_backward_cpu(bdk_rows grad, const float* more_or_null, bdk_rows h,
                                    bdk_rows gate, bdk_rows grad_x, bdk_rows grad_h,
                                    bdk_rows grad_gate, int64_t rows, int64_t channels,
                                    int threads) {
  using namespace bdk;
  if (!are_dtypes(grad, h, gate, grad_x, grad_h, grad_gate)) return BDK_BAD_DTYPE;
  if (rows < 0 || channels < 0 || threads < 1) return BDK_BAD_SIZE;
  const GatedResidualRows& kernel = choose();
  const WideRows in_grad(grad), in_h(h), in_gate(gate), out_x(grad_x), out_h(grad_h),
      out_gate(grad_gate);
  parallel_for(rows, kGrain / (channels + 1) + 1, 1, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float buffers[6][kRowTile];
    for_tiles(begin, end, channels, [&](int64_t r, int64_t c, int64_t count) {
      kernel.backward(in_grad.read(r, c, count, buffers[0]),
                      more_or_null == nullptr ? nullptr : more_or_null + r * channels + c,
                      in_h.read(r, c, count, buffers[1]), in_gate.read(r, c, count, buffers[2]),
                      out_x.place(r, c, buffers[3]), out_h.place(r, c, buffers[4]),
                      out_gate.place(r, c, buffers[5]), count);
      out_x.put(r, c, count, buffers[3]);
      out_h.put(r, c, count, buffers[4]);
      out_gate.put(r, c, count, buffers[5]);
    });
  });
  return BDK_OK;
}
