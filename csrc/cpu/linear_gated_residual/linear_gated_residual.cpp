// linear_gated_residual: the entry.
#include "bitdance_kernels.h"
#include "cpu/common/panels.h"
#include "cpu/common/wide_rows.h"

int bdk_linear_gated_residual_cpu(bdk_rows x, const float* weight, const float* bias_or_null,
                                  const float* residual, bdk_rows gate, float* y, int64_t rows,
                                  int64_t channels, int64_t features, int threads) {
  using namespace bdk;
  if (!all_wide(x) || (gate.data != nullptr && !all_wide(gate))) return BDK_BAD_DTYPE;
  if (rows < 0 || channels < 1 || features < 0 || threads < 1) return BDK_BAD_SIZE;
  if (features % kPanel != 0) return BDK_BAD_SIZE;
  panel_product({static_cast<const float*>(x.data), x.stride, weight, bias_or_null, y, features,
                 channels, residual, static_cast<const float*>(gate.data), gate.stride},
                rows, features, threads);
  return BDK_OK;
}
