// adaln_norm: entries, choice of the instruction set.
#include "cpu/adaln_norm/adaln_norm.h"

#include "cpu/common/isa.h"
#include "cpu/common/parallel.h"
#include "cpu/common/wide_rows.h"

namespace bdk {
namespace {

// Elements a thread must have to be worth starting: about 2 us.
constexpr int64_t kGrain = 4096;
constexpr AdalnNormRows kScalarRows = kAdalnNormHere;

const AdalnNormRows& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kAdalnNormAvx512;
  if (active_isa() == kAvx2) return kAdalnNormAvx2;
#endif
  return kScalarRows;
}

}  // namespace
}  // namespace bdk

int bdk_adaln_norm_cpu(bdk_rows x, bdk_rows scale, bdk_rows shift, const float* weight_or_null,
                       const float* bias_or_null, bdk_rows y, int64_t rows, int64_t channels,
                       float eps, int threads) {
  using namespace bdk;
  if (!are_dtypes(x, scale, shift, y)) return BDK_BAD_DTYPE;
  if (rows < 0 || channels <= 0 || threads < 1) return BDK_BAD_SIZE;
  if (channels > kMaxHalves && !all_wide(x, scale, shift, y)) return BDK_BAD_SIZE;
  const AdalnNormRows& kernel = choose();
  const WideRows in(x), in_scale(scale), in_shift(shift), out(y);
  const bool pair = (weight_or_null == nullptr) == (bias_or_null == nullptr);
  if (pair && all_halves(x, scale, shift, y)) {
    const auto forward = y.dtype == kFloat16 ? kernel.float16 : kernel.bfloat16;
    parallel_for(rows, kGrain / channels + 1, 1, threads, [&](int64_t begin, int64_t end) {
      alignas(64) float buffer[kMaxHalves];
      for (int64_t r = begin; r < end; ++r) {
        forward(in.halves(r), in_scale.halves(r), in_shift.halves(r), weight_or_null, bias_or_null,
                out.halves(r), buffer, channels, eps);
      }
    });
    return BDK_OK;
  }
  parallel_for(rows, kGrain / channels + 1, 1, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float buffers[4][kMaxHalves];
    for (int64_t r = begin; r < end; ++r) {
      kernel.forward(in.read(r, 0, channels, buffers[0]), in_scale.read(r, 0, channels, buffers[1]),
                     in_shift.read(r, 0, channels, buffers[2]), weight_or_null, bias_or_null,
                     out.place(r, 0, buffers[3]), channels, eps);
      out.put(r, 0, channels, buffers[3]);
    }
  });
  return BDK_OK;
}

int bdk_adaln_norm_backward_cpu(bdk_rows grad, bdk_rows x, bdk_rows scale,
                                const float* weight_or_null, const float* bias_or_null,
                                bdk_rows grad_x, bdk_rows grad_scale, bdk_rows grad_shift,
                                float* grad_weight, float* grad_bias, float* moments, int64_t rows,
                                int64_t channels, float eps, int threads) {
  using namespace bdk;
  if (!are_dtypes(grad, x, scale, grad_x, grad_scale, grad_shift)) return BDK_BAD_DTYPE;
  if (rows < 0 || channels <= 0 || threads < 1) return BDK_BAD_SIZE;
  if (channels > kMaxHalves && !all_wide(grad, x, scale, grad_x, grad_scale, grad_shift)) {
    return BDK_BAD_SIZE;
  }
  const AdalnNormRows& kernel = choose();
  const WideRows in_grad(grad), in(x), in_scale(scale);
  const WideRows out_x(grad_x), out_scale(grad_scale), out_shift(grad_shift);
  parallel_for(rows, kGrain / channels + 1, 1, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float buffers[6][kMaxHalves];
    for (int64_t r = begin; r < end; ++r) {
      const Moments m = kernel.backward(
          in_grad.read(r, 0, channels, buffers[0]), in.read(r, 0, channels, buffers[1]),
          in_scale.read(r, 0, channels, buffers[2]), weight_or_null, bias_or_null,
          out_x.place(r, 0, buffers[3]), out_scale.place(r, 0, buffers[4]),
          out_shift.place(r, 0, buffers[5]), channels, eps);
      out_x.put(r, 0, channels, buffers[3]);
      out_scale.put(r, 0, channels, buffers[4]);
      out_shift.put(r, 0, channels, buffers[5]);
      moments[2 * r] = m.mean;
      moments[2 * r + 1] = m.rstd;
    }
  });
  if (weight_or_null == nullptr && bias_or_null == nullptr) return BDK_OK;
  // Each thread takes some of the channels and sums them over the rows in order, so the result is
  // the same for any number of threads.
  constexpr int64_t kLine = 16;
  parallel_for(channels, kGrain / (rows + 1) + 1, kLine, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float buffers[3][kRowTile];
    for (int64_t c = begin; c < end; ++c) grad_weight[c] = grad_bias[c] = 0.0f;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = begin; c < end; c += kRowTile) {
        const int64_t count = end - c < kRowTile ? end - c : kRowTile;
        kernel.add_affine(in_grad.read(r, c, count, buffers[0]), in.read(r, c, count, buffers[1]),
                          {moments[2 * r], moments[2 * r + 1]},
                          in_scale.read(r, c, count, buffers[2]), grad_weight + c, grad_bias + c,
                          count);
      }
    }
  });
  return BDK_OK;
}
