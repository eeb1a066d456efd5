// rms_norm: entry and loops.
#include <math.h>

#include "bitdance_kernels.h"
#include "cpu/common/parallel.h"
#include "cpu/common/wide_rows.h"

namespace bdk {
namespace {

// Results a thread must have to be worth starting.
constexpr int64_t kGrain = 16384;

}  // namespace
}  // namespace bdk

int bdk_rms_norm_cpu(bdk_rows x, const float* weight_or_null, bdk_rows y, int64_t rows,
                     int64_t channels, double eps, int threads) {
  using namespace bdk;
  if (!are_dtypes(x, y)) return BDK_BAD_DTYPE;
  if (rows < 0 || channels < 1 || threads < 1) return BDK_BAD_SIZE;
  const WideRows in(x), out(y);
  parallel_for(rows, kGrain / channels + 1, 1, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float buffers[2][kRowTile];
    for (int64_t row = begin; row < end; ++row) {
      double squares = 0.0;  // an error here is common to the whole row
      for_tiles(row, row + 1, channels, [&](int64_t r, int64_t c, int64_t count) {
        const float* from = in.read(r, c, count, buffers[0]);
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < count; ++i) {
          sum += static_cast<double>(from[i]) * static_cast<double>(from[i]);
        }
        squares += sum;
      });
      const double mean = squares / static_cast<double>(channels);
      const float scale = static_cast<float>(1.0 / sqrt(mean + eps));
      for_tiles(row, row + 1, channels, [&](int64_t r, int64_t c, int64_t count) {
        const float* from = in.read(r, c, count, buffers[0]);
        float* to = out.place(r, c, buffers[1]);
        if (weight_or_null == nullptr) {
          for (int64_t i = 0; i < count; ++i) to[i] = from[i] * scale;
        } else {
          for (int64_t i = 0; i < count; ++i) to[i] = from[i] * scale * weight_or_null[c + i];
        }
        out.put(r, c, count, buffers[1]);
      });
    }
  });
  return BDK_OK;
}
