// rms_norm: entry, choice of the instruction set.
#include "cpu/rms_norm/rms_norm.h"

#include <math.h>

#include "bitdance_kernels.h"
#include "cpu/common/isa.h"
#include "cpu/common/parallel.h"
#include "cpu/common/wide_rows.h"

namespace bdk {
namespace {

// Results a thread must have to be worth starting.
constexpr int64_t kGrain = 16384;
constexpr RmsNormRows kScalarRows = kRmsNormHere;

const RmsNormRows& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kRmsNormAvx512;
  if (active_isa() == kAvx2) return kRmsNormAvx2;
#endif
  return kScalarRows;
}

}  // namespace
}  // namespace bdk

int bdk_rms_norm_cpu(bdk_rows x, const float* weight_or_null, bdk_rows y, int64_t rows,
                     int64_t channels, double eps, int threads) {
  using namespace bdk;
  if (!are_dtypes(x, y)) return BDK_BAD_DTYPE;
  if (rows < 0 || channels < 1 || threads < 1) return BDK_BAD_SIZE;
  const RmsNormRows& kernel = choose();
  const WideRows in(x), out(y);
  parallel_for(rows, kGrain / channels + 1, 1, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float buffers[2][kRowTile];
    for (int64_t row = begin; row < end; ++row) {
      double squares = 0.0;
      for_tiles(row, row + 1, channels, [&](int64_t r, int64_t c, int64_t count) {
        squares += kernel.squares(in.read(r, c, count, buffers[0]), count);
      });
      const double mean = squares / static_cast<double>(channels);
      const float scale = static_cast<float>(1.0 / sqrt(mean + eps));
      for_tiles(row, row + 1, channels, [&](int64_t r, int64_t c, int64_t count) {
        const float* from = in.read(r, c, count, buffers[0]);
        const float* weight = weight_or_null == nullptr ? nullptr : weight_or_null + c;
        kernel.scale(from, scale, weight, out.place(r, c, buffers[1]), count);
        out.put(r, c, count, buffers[1]);
      });
    }
  });
  return BDK_OK;
}
