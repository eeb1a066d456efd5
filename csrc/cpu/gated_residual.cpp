// gated_residual: entries, choice of the instruction set.
#include "cpu/gated_residual.h"

#include "bitdance_kernels.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace bdk {
namespace {

// Elements a thread must have to be worth starting: about 10 us.
constexpr int64_t kGrain = 16384;
constexpr GatedResidualRows kScalarRows = {gated_residual_row, gated_residual_adaln_row,
                                           gated_residual_backward_row};

const GatedResidualRows& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kGatedResidualAvx512;
  if (active_isa() == kAvx2) return kGatedResidualAvx2;
#endif
  return kScalarRows;
}

}  // namespace
}  // namespace bdk

int bdk_gated_residual_cpu(const float* x, int64_t x_stride, const float* h, int64_t h_stride,
                           const float* gate, int64_t gate_stride, float* y, int64_t rows,
                           int64_t channels, int threads) {
  using namespace bdk;
  if (rows < 0 || channels < 0 || threads < 1) return BDK_BAD_SIZE;
  const GatedResidualRows& kernel = choose();
  parallel_for(rows, kGrain / (channels + 1) + 1, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      kernel.forward(x + r * x_stride, h + r * h_stride, gate + r * gate_stride, y + r * channels,
                     channels);
    }
  });
  return BDK_OK;
}

int bdk_gated_residual_adaln_cpu(const float* x, int64_t x_stride, const float* h, int64_t h_stride,
                                 const float* gate, int64_t gate_stride, const float* scale,
                                 int64_t scale_stride, const float* shift, int64_t shift_stride,
                                 const float* weight_or_null, const float* bias_or_null, float* y,
                                 float* z, int64_t rows, int64_t channels, float eps, int threads) {
  using namespace bdk;
  if (rows < 0 || channels <= 0 || threads < 1) return BDK_BAD_SIZE;
  const GatedResidualRows& kernel = choose();
  parallel_for(rows, kGrain / channels + 1, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      kernel.forward_adaln(x + r * x_stride, h + r * h_stride, gate + r * gate_stride,
                           scale + r * scale_stride, shift + r * shift_stride, weight_or_null,
                           bias_or_null, y + r * channels, z + r * channels, channels, eps);
    }
  });
  return BDK_OK;
}

int bdk_gated_residual_backward_cpu(const float* grad, int64_t grad_stride,
                                    const float* more_or_null, const float* h, int64_t h_stride,
                                    const float* gate, int64_t gate_stride, float* of_x,
                                    float* of_h, float* of_gate, int64_t rows, int64_t channels,
                                    int threads) {
  using namespace bdk;
  if (rows < 0 || channels < 0 || threads < 1) return BDK_BAD_SIZE;
  const GatedResidualRows& kernel = choose();
  parallel_for(rows, kGrain / (channels + 1) + 1, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t at = r * channels;
      kernel.backward(grad + r * grad_stride, more_or_null == nullptr ? nullptr : more_or_null + at,
                      h + r * h_stride, gate + r * gate_stride, of_x + at, of_h + at, of_gate + at,
                      channels);
    }
  });
  return BDK_OK;
}
