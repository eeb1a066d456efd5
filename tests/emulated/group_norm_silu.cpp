// The device code of group_norm_silu on the CPU.
#include "card.h"
//
#include "cuda/group_norm_silu/group_norm_silu.cuh"

namespace bdk {

float2 group_norm_memory[kGroupNormThreads * 8];

namespace {

struct Launch {
  GroupNormParams params;
  unsigned int images;

  template <int kVec, class Kernel>
  void large(const Kernel& kernel) {
    const int vectors = params.channels / kVec;
    params.vectors = vectors < kGroupNormThreads ? vectors : kGroupNormThreads;
    params.columns = (vectors + params.vectors - 1) / params.vectors;
    emulated::launch(images * params.chunks * params.columns, kGroupNormThreads, false,
                     [&] { kernel(params); });
  }
  template <class Kernel>
  void small(const Kernel& kernel) {
    emulated::launch(images * params.groups, kGroupNormJoiners, true, [&] { kernel(params); });
  }
};

template <class T, int kVec, bool kSilu>
void run(Launch launch) {
  launch.large<kVec>(group_norm_moments_kernel<T, kVec>);
  launch.small(group_norm_coefficients_kernel);
  if (launch.params.grad == nullptr) {
    return launch.large<kVec>(group_norm_silu_kernel<T, kVec, kSilu>);
  }
  launch.large<kVec>(group_norm_sums_kernel<T, kVec, kSilu>);
  launch.small(group_norm_gradients_kernel);
  launch.large<kVec>(group_norm_silu_backward_kernel<T, kVec, kSilu>);
}

template <class T>
void run(const Launch& launch, bool silu) {
  constexpr int kVec = 16 / sizeof(T);
  if (launch.params.channels % kVec == 0) {
    return silu ? run<T, kVec, true>(launch) : run<T, kVec, false>(launch);
  }
  silu ? run<T, 1, true>(launch) : run<T, 1, false>(launch);
}

}  // namespace
}  // namespace bdk

// sizes: images, channels, positions, groups, chunk, whether SiLU follows, dtype, then stride and
// dtype of weight, bias, scale and shift; tensors: x, y, grad or null, grad_x, these four, their
// gradients, and the workspaces moments, sums, coefficients.
extern "C" void group_norm_silu(void* const* tensors, const int64_t* sizes, double eps) {
  using namespace bdk;
  const auto rows = [&](int i) {
    return bdk_rows{tensors[4 + i], sizes[7 + 2 * i], static_cast<int>(sizes[8 + 2 * i]), 1};
  };
  const auto floats = [&](int i) { return static_cast<float*>(tensors[i]); };
  GroupNormParams params{};
  params.x = tensors[0];
  params.y = tensors[1];
  params.grad = tensors[2];
  params.grad_x = tensors[3];
  params.weight = rows(0);
  params.bias = rows(1);
  params.scale = rows(2);
  params.shift = rows(3);
  params.grad_weight = floats(8);
  params.grad_bias = floats(9);
  params.grad_scale = floats(10);
  params.grad_shift = floats(11);
  params.moments = static_cast<float2*>(tensors[12]);
  params.sums = static_cast<float2*>(tensors[13]);
  params.coefficients = floats(14);
  params.channels = static_cast<int>(sizes[1]);
  params.positions = sizes[2];
  params.groups = static_cast<int>(sizes[3]);
  params.chunk = sizes[4];
  params.chunks = static_cast<int>((params.positions + params.chunk - 1) / params.chunk);
  params.eps = eps;
  const Launch launch = {params, static_cast<unsigned int>(sizes[0])};
  if (sizes[6] == kFloat32) return run<float>(launch, sizes[5] != 0);
  if (sizes[6] == kFloat16) return run<__half>(launch, sizes[5] != 0);
  run<__nv_bfloat16>(launch, sizes[5] != 0);
}
