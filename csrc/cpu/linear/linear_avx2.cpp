// linear compiled for AVX2.
#include "cpu/common/panels.h"
#include "cpu/linear/linear.h"

namespace bdk {

const LinearLoops kLinearAvx2 = {linear_features};
const PanelLinearLoops kPanelLinearAvx2 = {linear_panels};

}  // namespace bdk
