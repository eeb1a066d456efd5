// adaln_norm: entries, choice of the instruction set.
#include "cpu/adaln_norm.h"

#include "bitdance_kernels.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace bdk {
namespace {

// Elements a thread must have to be worth starting: about 10 us.
constexpr int64_t kGrain = 16384;
constexpr AdalnNormRows kScalarRows = {adaln_norm_row, adaln_norm_backward_row,
                                       adaln_norm_add_affine};

const AdalnNormRows& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kAdalnNormAvx512;
  if (active_isa() == kAvx2) return kAdalnNormAvx2;
#endif
  return kScalarRows;
}

}  // namespace
}  // namespace bdk

int bdk_adaln_norm_cpu(const float* x, int64_t x_stride, const float* scale, int64_t scale_stride,
                       const float* shift, int64_t shift_stride, const float* weight_or_null,
                       const float* bias_or_null, float* y, int64_t rows, int64_t channels,
                       float eps, int threads) {
  using namespace bdk;
  if (rows < 0 || channels <= 0 || threads < 1) return BDK_BAD_SIZE;
  const AdalnNormRows& kernel = choose();
  parallel_for(rows, kGrain / channels + 1, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      kernel.forward(x + r * x_stride, scale + r * scale_stride, shift + r * shift_stride,
                     weight_or_null, bias_or_null, y + r * channels, channels, eps);
    }
  });
  return BDK_OK;
}

int bdk_adaln_norm_backward_cpu(const float* grad, int64_t grad_stride, const float* x,
                                int64_t x_stride, const float* scale, int64_t scale_stride,
                                const float* weight_or_null, const float* bias_or_null, float* of_x,
                                float* of_scale, float* of_shift, float* of_weight, float* of_bias,
                                float* moments, int64_t rows, int64_t channels, float eps,
                                int threads) {
  using namespace bdk;
  if (rows < 0 || channels <= 0 || threads < 1) return BDK_BAD_SIZE;
  const AdalnNormRows& kernel = choose();
  parallel_for(rows, kGrain / channels + 1, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const Moments m =
          kernel.backward(grad + r * grad_stride, x + r * x_stride, scale + r * scale_stride,
                          weight_or_null, bias_or_null, of_x + r * channels,
                          of_scale + r * channels, of_shift + r * channels, channels, eps);
      moments[2 * r] = m.mean;
      moments[2 * r + 1] = m.rstd;
    }
  });
  if (weight_or_null == nullptr && bias_or_null == nullptr) return BDK_OK;
  // Threads share out the channels, so that every sum runs over the rows in order: the same result
  // for any number of threads.
  constexpr int64_t kLine = 16;
  parallel_for(channels, kGrain / (rows + 1) + 1, kLine, threads, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) of_weight[c] = of_bias[c] = 0.0f;
    for (int64_t r = 0; r < rows; ++r) {
      kernel.add_affine(grad + r * grad_stride, x + r * x_stride,
                        {moments[2 * r], moments[2 * r + 1]}, scale + r * scale_stride, of_weight,
                        of_bias, begin, end);
    }
  });
  return BDK_OK;
}
