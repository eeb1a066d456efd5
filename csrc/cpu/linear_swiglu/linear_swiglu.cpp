// linear_swiglu: the entry, choice of the instruction set.
#include "cpu/linear_swiglu/linear_swiglu.h"

#include "bitdance_kernels.h"
#include "cpu/common/isa.h"
#include "cpu/common/panel_threads.h"
#include "cpu/common/wide_rows.h"

namespace bdk {
namespace {

constexpr LinearSwigluLoops kScalarLoops = {linear_swiglu_panels};

const LinearSwigluLoops& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kLinearSwigluAvx512;
  if (active_isa() == kAvx2) return kLinearSwigluAvx2;
#endif
  return kScalarLoops;
}

}  // namespace
}  // namespace bdk

int bdk_linear_swiglu_cpu(bdk_rows x, const float* weight, const float* bias_or_null, bdk_rows y,
                          int64_t rows, int64_t channels, int64_t features, int threads) {
  using namespace bdk;
  if (!all_wide(x, y)) return BDK_BAD_DTYPE;
  if (rows < 0 || channels < 1 || features < 0 || threads < 1) return BDK_BAD_SIZE;
  if (features % kPanel != 0) return BDK_BAD_SIZE;
  const LinearSwigluLoops& loops = choose();
  const PanelLinear linear = {static_cast<const float*>(x.data), x.stride, weight,   bias_or_null,
                              static_cast<float*>(y.data),       y.stride, channels, nullptr};
  in_panels(rows, 2 * channels, features, threads,
            [&](auto... range) { loops.panels(linear, features / kPanel, range...); });
  return BDK_OK;
}
