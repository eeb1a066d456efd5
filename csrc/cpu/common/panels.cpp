// Linear layers with panels: choice of the instruction set, and division among threads.
#include "cpu/common/panels.h"

#include "cpu/common/isa.h"
#include "cpu/common/panel_threads.h"

namespace bdk {
namespace {

constexpr PanelLinearLoops kScalarPanels = {linear_panels};

const PanelLinearLoops& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kPanelLinearAvx512;
  if (active_isa() == kAvx2) return kPanelLinearAvx2;
#endif
  return kScalarPanels;
}

}  // namespace

void panel_product(const PanelLinear& linear, int64_t rows, int64_t features, int threads) {
  const PanelLinearLoops& loops = choose();
  in_panels(rows, linear.channels, features, threads,
            [&](auto... range) { loops.panels(linear, range...); });
}

}  // namespace bdk
