// skinny_product of float8 weights.
#include "cuda/common/skinny_product_launch_sm90.cuh"

namespace bdk {

template cudaError_t launch_skinny_product<true>(const SkinnyParams&, int, const LaunchSm90&);

}  // namespace bdk
