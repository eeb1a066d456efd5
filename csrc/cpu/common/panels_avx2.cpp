// Linear layers with panels compiled for AVX2.
#include "cpu/common/panels.h"

namespace bdk {

const PanelLinearLoops kPanelLinearAvx2 = {linear_panels};

}  // namespace bdk
