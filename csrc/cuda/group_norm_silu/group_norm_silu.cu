// group_norm_silu: check, choose the kernels, launch them.
#include <initializer_list>
#include <type_traits>

#include "bitdance_kernels_cuda.h"
#include "cuda/common/launch.h"
#include "cuda/group_norm_silu/group_norm_silu.cuh"

namespace bdk {
namespace {

constexpr int64_t kMaxBlocks = INT32_MAX;

int check(const GroupNormParams& params, int64_t images, int64_t channels, int64_t groups,
          int dtype) {
  for (const bdk_rows& given : {params.weight, params.bias, params.scale, params.shift}) {
    if (given.data != nullptr && !is_dtype(given.dtype)) return BDK_BAD_DTYPE;
  }
  if (!is_dtype(dtype)) return BDK_BAD_DTYPE;
  if (images < 0 || params.positions < 0 || params.chunk < 1 || groups < 1 || channels < 1 ||
      channels % groups != 0 || channels > INT32_MAX / 5) {
    return BDK_BAD_SIZE;
  }
  const int64_t chunks = (params.positions + params.chunk - 1) / params.chunk;
  // A position has at most `channels` columns.
  if (chunks > kMaxBlocks || images > kMaxBlocks / (chunks > 0 ? chunks : 1) / channels) {
    return BDK_BAD_SIZE;
  }
  return BDK_OK;
}

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// Calls body(T(), constant of the vector width): 16 bytes where every position starts at a multiple
// of them.
template <class T, class Body>
void with_width(const GroupNormParams& params, const Body& body) {
  constexpr int kVec = 16 / sizeof(T);
  const bool packed = params.channels % kVec == 0 && aligned(params.x) && aligned(params.grad) &&
                      aligned(params.y) && aligned(params.grad_x);
  if (packed) {
    body(T(), std::integral_constant<int, kVec>());
  } else {
    body(T(), std::integral_constant<int, 1>());
  }
}

template <class Body>
void with_format(const GroupNormParams& params, int dtype, const Body& body) {
  if (dtype == kFloat32) return with_width<float>(params, body);
  if (dtype == kFloat16) return with_width<__half>(params, body);
  with_width<__nv_bfloat16>(params, body);
}

struct GroupNormLaunch {
  GroupNormParams params;
  int64_t images;
  cudaStream_t stream;

  template <int kVec>
  void large(void (*kernel)(const GroupNormParams)) {  // a kernel over the whole map
    const int vectors = params.channels / kVec;
    params.vectors = vectors < kGroupNormThreads ? vectors : kGroupNormThreads;
    params.columns = (vectors + params.vectors - 1) / params.vectors;
    const int64_t blocks = images * params.chunks * params.columns;
    const size_t shared = sizeof(float2) * kGroupNormThreads * kVec;
    kernel<<<static_cast<unsigned int>(blocks), kGroupNormThreads, shared, stream>>>(params);
  }
  void small(void (*kernel)(const GroupNormParams)) {  // a kernel that combines chunks
    const int64_t blocks = images * params.groups;
    const size_t shared = sizeof(Spread) * kGroupNormJoiners;
    kernel<<<static_cast<unsigned int>(blocks), kGroupNormJoiners, shared, stream>>>(params);
  }
};

GroupNormLaunch make_launch(GroupNormParams params, int64_t images, int64_t channels,
                            int64_t groups, void* stream) {
  params.channels = static_cast<int>(channels);
  params.groups = static_cast<int>(groups);
  params.chunks = static_cast<int>((params.positions + params.chunk - 1) / params.chunk);
  return {params, images, static_cast<cudaStream_t>(stream)};
}

}  // namespace
}  // namespace bdk

int bdk_group_norm_silu_cuda(const void* x, void* y, int64_t images, int64_t channels,
                             int64_t positions, int64_t groups, int64_t chunk, bdk_rows weight,
                             bdk_rows bias, bdk_rows scale, bdk_rows shift, int silu, double eps,
                             float* moments, float* coefficients, int dtype, int device,
                             void* stream) {
  using namespace bdk;
  GroupNormParams params{};
  params.x = x;
  params.y = y;
  params.weight = weight;
  params.bias = bias;
  params.scale = scale;
  params.shift = shift;
  params.moments = reinterpret_cast<float2*>(moments);
  params.coefficients = coefficients;
  params.positions = positions;
  params.chunk = chunk;
  params.eps = eps;
  const int status = check(params, images, channels, groups, dtype);
  if (status != BDK_OK) return status;
  if (images == 0 || positions == 0) return BDK_OK;
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  GroupNormLaunch launch = make_launch(params, images, channels, groups, stream);
  with_format(launch.params, dtype, [&](auto type, auto width) {
    using T = decltype(type);
    constexpr int kVec = decltype(width)::value;
    launch.large<kVec>(group_norm_moments_kernel<T, kVec>);
    launch.small(group_norm_coefficients_kernel);
    launch.large<kVec>(silu != 0 ? group_norm_silu_kernel<T, kVec, true>
                                 : group_norm_silu_kernel<T, kVec, false>);
  });
  return cudaPeekAtLastError();
}

int bdk_group_norm_silu_backward_cuda(const void* grad, const void* x, void* grad_x, int64_t images,
                                      int64_t channels, int64_t positions, int64_t groups,
                                      int64_t chunk, bdk_rows weight, bdk_rows bias, bdk_rows scale,
                                      bdk_rows shift, float* grad_weight_or_null,
                                      float* grad_bias_or_null, float* grad_scale_or_null,
                                      float* grad_shift_or_null, int silu, double eps,
                                      float* moments, float* sums, float* coefficients, int dtype,
                                      int device, void* stream) {
  using namespace bdk;
  GroupNormParams params{};
  params.x = x;
  params.grad = grad;
  params.grad_x = grad_x;
  params.weight = weight;
  params.bias = bias;
  params.scale = scale;
  params.shift = shift;
  params.grad_weight = grad_weight_or_null;
  params.grad_bias = grad_bias_or_null;
  params.grad_scale = grad_scale_or_null;
  params.grad_shift = grad_shift_or_null;
  params.moments = reinterpret_cast<float2*>(moments);
  params.sums = reinterpret_cast<float2*>(sums);
  params.coefficients = coefficients;
  params.positions = positions;
  params.chunk = chunk;
  params.eps = eps;
  const int status = check(params, images, channels, groups, dtype);
  if (status != BDK_OK) return status;
  if (images == 0 || positions == 0) return BDK_OK;
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  GroupNormLaunch launch = make_launch(params, images, channels, groups, stream);
  with_format(launch.params, dtype, [&](auto type, auto width) {
    using T = decltype(type);
    constexpr int kVec = decltype(width)::value;
    launch.large<kVec>(group_norm_moments_kernel<T, kVec>);
    launch.small(group_norm_coefficients_kernel);
    launch.large<kVec>(silu != 0 ? group_norm_sums_kernel<T, kVec, true>
                                 : group_norm_sums_kernel<T, kVec, false>);
    launch.small(group_norm_gradients_kernel);
    launch.large<kVec>(silu != 0 ? group_norm_silu_backward_kernel<T, kVec, true>
                                 : group_norm_silu_backward_kernel<T, kVec, false>);
  });
  return cudaPeekAtLastError();
}
