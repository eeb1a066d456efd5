// adaln_norm: entries, choice of the instruction set.
#include "cpu/adaln_norm/adaln_norm.h"

#include "cpu/common/isa.h"
#include "cpu/common/parallel.h"
#include "cpu/common/wide_rows.h"

namespace bdk {
namespace {

// Elements a thread must have to be worth starting: about 2 us.
constexpr int64_t kGrain = 4096;
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

int bdk_adaln_norm_cpu(bdk_rows x, bdk_rows scale, bdk_rows shift, const float* weight_or_null,
                       const float* bias_or_null, bdk_rows y, int64_t rows, int64_t channels,
                       float eps, int threads) {
  using namespace bdk;
  if (!are_dtypes(x, scale, shift, y)) return BDK_BAD_DTYPE;
  if (rows < 0 || channels <= 0 || threads < 1) return BDK_BAD_SIZE;
  if (channels > kMostHalves && !all_wide(x, scale, shift, y)) return BDK_BAD_SIZE;
  const AdalnNormRows& kernel = choose();
  const WideRows in(x), in_scale(scale), in_shift(shift), out(y);
  parallel_for(rows, kGrain / channels + 1, 1, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float buffers[4][kMostHalves];
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
                                bdk_rows of_x, bdk_rows of_scale, bdk_rows of_shift,
                                float* of_weight, float* of_bias, float* moments, int64_t rows,
                                int64_t channels, float eps, int threads) {
  using namespace bdk;
  if (!are_dtypes(grad, x, scale, of_x, of_scale, of_shift)) return BDK_BAD_DTYPE;
  if (rows < 0 || channels <= 0 || threads < 1) return BDK_BAD_SIZE;
  if (channels > kMostHalves && !all_wide(grad, x, scale, of_x, of_scale, of_shift)) {
    return BDK_BAD_SIZE;
  }
  const AdalnNormRows& kernel = choose();
  const WideRows of_y(grad), in(x), in_scale(scale);
  const WideRows out_x(of_x), out_scale(of_scale), out_shift(of_shift);
  parallel_for(rows, kGrain / channels + 1, 1, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float buffers[6][kMostHalves];
    for (int64_t r = begin; r < end; ++r) {
      const Moments m = kernel.backward(
          of_y.read(r, 0, channels, buffers[0]), in.read(r, 0, channels, buffers[1]),
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
  // Threads share out the channels, so that every sum runs over the rows in order: the same result
  // for any number of threads.
  constexpr int64_t kLine = 16;
  parallel_for(channels, kGrain / (rows + 1) + 1, kLine, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float buffers[3][kRowTile];
    for (int64_t c = begin; c < end; ++c) of_weight[c] = of_bias[c] = 0.0f;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = begin; c < end; c += kRowTile) {
        const int64_t count = end - c < kRowTile ? end - c : kRowTile;
        kernel.add_affine(of_y.read(r, c, count, buffers[0]), in.read(r, c, count, buffers[1]),
                          {moments[2 * r], moments[2 * r + 1]},
                          in_scale.read(r, c, count, buffers[2]), of_weight + c, of_bias + c,
                          count);
      }
    }
  });
  return BDK_OK;
}
