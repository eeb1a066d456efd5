// Linear layers with panels compiled for AVX-512.
#include "cpu/common/panels.h"

namespace bdk {

const PanelLinearLoops kPanelLinearAvx512 = {linear_panels};

}  // namespace bdk
