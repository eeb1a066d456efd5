// The device code of denoise_step_linear on the CPU.
#include "card.h"
//
#include "cuda/denoise_step_linear/denoise_step_linear_sm90.cuh"

// tensors: x, x0, table, step, cfg, noise, keys, weight, bias, state, stream, moments.
// sizes: tokens, patch, bits, features, squash, bytes of step. late: as in skinny_product.cpp.
extern "C" const char* denoise_step_linear(void* const* tensors, const int64_t* sizes, int is_half,
                                           const int64_t* late_bytes, uint32_t seed) {
  using namespace bdk;
  const auto floats = [&](int i) { return static_cast<float*>(tensors[i]); };
  const auto size = [&](int i) { return static_cast<int>(sizes[i]); };
  const DenoiseStepLinearParams params{floats(0),
                                       tensors[1],
                                       floats(2),
                                       tensors[3],
                                       size(5) == 8,
                                       size(4) != 0,
                                       floats(4),
                                       floats(5),
                                       static_cast<const int64_t*>(tensors[6]),
                                       static_cast<const uint4*>(tensors[7]),
                                       tensors[8],
                                       floats(9),
                                       tensors[10],
                                       static_cast<float2*>(tensors[11]),
                                       size(0),
                                       size(1),
                                       size(2),
                                       size(3)};
  for (int i = 0; i < 12; ++i) {
    if (late_bytes[i] > 0) emulated::late_input(tensors[i], static_cast<size_t>(late_bytes[i]));
  }
  const int shared = step_linear_shared_bytes(params.tokens, params.bits);
  return emulated::launch_clusters(params.features / 16, 1, kStepLinearThreads, shared, seed, [&] {
    if (is_half != 0) {
      denoise_step_linear_kernel<__half>(params);
    } else {
      denoise_step_linear_kernel<__nv_bfloat16>(params);
    }
  });
}
