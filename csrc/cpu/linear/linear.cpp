// linear: the entry, choice of the instruction set.
#include "cpu/linear/linear.h"

#include "bitdance_kernels.h"
#include "cpu/common/isa.h"
#include "cpu/common/panel_threads.h"
#include "cpu/common/wide_rows.h"
#include "cpu/linear/int8.h"

namespace bdk {
namespace {

// Floats to pack that a thread must have to be worth starting.
constexpr int64_t kPackGrain = int64_t{1} << 13;
constexpr LinearLoops kScalarLoops = {linear_features};
constexpr Int8LinearLoops kScalarInt8 = {int8_panels};

const Int8LinearLoops& choose_int8() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kInt8LinearAvx512;
  if (active_isa() == kAvx2) return kInt8LinearAvx2;
#endif
  return kScalarInt8;
}

const LinearLoops& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kLinearAvx512;
  if (active_isa() == kAvx2) return kLinearAvx2;
#endif
  return kScalarLoops;
}

}  // namespace
}  // namespace bdk

int bdk_linear_cpu(bdk_rows x, bdk_rows weight, const float* bias_or_null, bdk_rows y, int64_t rows,
                   int64_t channels, int64_t features, int threads) {
  using namespace bdk;
  if (!all_wide(x, weight, y)) return BDK_BAD_DTYPE;
  if (rows < 0 || channels < 1 || features < 0 || threads < 1) return BDK_BAD_SIZE;
  const LinearLoops& loops = choose();
  const Linear linear = {static_cast<const float*>(x.data),
                         x.stride,
                         static_cast<const float*>(weight.data),
                         weight.stride,
                         bias_or_null,
                         static_cast<float*>(y.data),
                         y.stride,
                         rows,
                         channels};
  const int64_t grain = kProductGrain / (rows * channels + 1) + 1;
  parallel_for(features, grain, kBlockFeatures, threads,
               [&](int64_t begin, int64_t end) { loops.features(linear, begin, end); });
  return BDK_OK;
}

int bdk_linear_panels_cpu(bdk_rows x, const float* weight, const float* bias_or_null, bdk_rows y,
                          int64_t rows, int64_t channels, int64_t features, int threads) {
  using namespace bdk;
  if (!all_wide(x, y)) return BDK_BAD_DTYPE;
  if (rows < 0 || channels < 1 || features < 0 || threads < 1) return BDK_BAD_SIZE;
  if (features % kPanel != 0) return BDK_BAD_SIZE;
  panel_product({static_cast<const float*>(x.data), x.stride, weight, bias_or_null,
                 static_cast<float*>(y.data), y.stride, channels, nullptr},
                rows, features, threads);
  return BDK_OK;
}

int bdk_linear_int8_cpu(bdk_rows x, const int8_t* weight, const float* bias_or_null, bdk_rows y,
                        int64_t rows, int64_t channels, int64_t features, int threads) {
  using namespace bdk;
  if (!all_wide(x, y)) return BDK_BAD_DTYPE;
  if (rows < 0 || channels < 1 || features < 0 || threads < 1) return BDK_BAD_SIZE;
  if (features % kPanel != 0) return BDK_BAD_SIZE;
  const Int8LinearLoops& loops = choose_int8();
  const Int8Linear linear = {static_cast<const float*>(x.data), x.stride, weight,  bias_or_null,
                             static_cast<float*>(y.data),       y.stride, channels};
  in_panels(rows, channels, features, threads,
            [&](auto... range) { loops.panels(linear, range...); });
  return BDK_OK;
}

int bdk_pack_panels_cpu(bdk_rows weight, float* panels, int64_t features, int64_t channels,
                        int threads) {
  using namespace bdk;
  if (!all_wide(weight)) return BDK_BAD_DTYPE;
  if (features < 0 || features % kPanel != 0 || channels < 0 || threads < 1) return BDK_BAD_SIZE;
  const float* const matrix = static_cast<const float*>(weight.data);
  const int64_t size = kPanel * channels, grain = kPackGrain / (size + 1) + 1;
  parallel_for(features / kPanel, grain, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const float* const from = matrix + panel * kPanel * weight.stride;
      float* const to = panels + panel * size;
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t i = 0; i < kPanel; ++i) to[c * kPanel + i] = from[i * weight.stride + c];
      }
    }
  });
  return BDK_OK;
}
