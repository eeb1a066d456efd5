// linear compiled for AVX-512.
#include "cpu/common/panels.h"
#include "cpu/linear/linear.h"

namespace bdk {

const LinearLoops kLinearAvx512 = {linear_features};
const PanelLinearLoops kPanelLinearAvx512 = {linear_panels};

}  // namespace bdk
