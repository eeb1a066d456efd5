// hamming_distance and nearest_codes: choose the kernel, launch it.
#include "bitdance_kernels_cuda.h"
#include "cuda/common/launch.h"
#include "cuda/hamming_distance/hamming_distance.cuh"

namespace bdk {
namespace {

bool by_words(const CodesParams& params) {
  const auto even = [](const uint8_t* codes, int64_t stride) {
    return reinterpret_cast<uintptr_t>(codes) % 4 == 0 && stride % 4 == 0;
  };
  return params.width % 4 == 0 && even(params.a, params.a_stride) &&
         even(params.b, params.b_stride);
}

bool in_range(int64_t queries, int64_t codes, int64_t width) {
  return queries >= 0 && codes >= 0 && width > 0 && width <= int64_t{1} << 21;
}

}  // namespace
}  // namespace bdk

int bdk_hamming_distance_cuda(const uint8_t* a, const uint8_t* b, int32_t* distance,
                              int64_t queries, int64_t codes, int64_t width, int64_t a_stride,
                              int64_t b_stride, int device, void* stream) {
  using namespace bdk;
  if (!in_range(queries, codes, width)) return BDK_BAD_SIZE;
  if (queries == 0 || codes == 0) return BDK_OK;
  const auto tiles = [](int64_t count) { return (count + kHammingTile - 1) / kHammingTile; };
  if (tiles(queries) > INT32_MAX / tiles(codes)) return BDK_BAD_SIZE;
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  const CodesParams params{a, b, queries, codes, a_stride, b_stride, static_cast<int>(width)};
  const auto kernel =
      by_words(params) ? hamming_distance_kernel<true> : hamming_distance_kernel<false>;
  const unsigned int blocks = static_cast<unsigned int>(tiles(queries) * tiles(codes));
  kernel<<<blocks, 32 * kHammingWarps, 0, static_cast<cudaStream_t>(stream)>>>(params, distance);
  return cudaPeekAtLastError();
}

int bdk_nearest_codes_cuda(const uint8_t* a, const uint8_t* b, int64_t* index, int32_t* distance,
                           int64_t queries, int64_t codes, int64_t width, int64_t a_stride,
                           int64_t b_stride, int64_t k, int device, void* stream) {
  using namespace bdk;
  if (!in_range(queries, codes, width) || 8 * width > kMaxNearestBits) return BDK_BAD_SIZE;
  if (k < 1 || k > codes || codes > UINT32_MAX) return BDK_BAD_SIZE;
  if (queries == 0) return BDK_OK;
  const int room = kNearestShared / nearest_shared(static_cast<int>(width));
  const int warps = room < kNearestWarps ? room : kNearestWarps;
  if ((queries + warps - 1) / warps > INT32_MAX) return BDK_BAD_SIZE;
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  const CodesParams params{a, b, queries, codes, a_stride, b_stride, static_cast<int>(width)};
  const auto kernel = by_words(params) ? nearest_codes_kernel<true> : nearest_codes_kernel<false>;
  const unsigned int blocks = static_cast<unsigned int>((queries + warps - 1) / warps);
  const size_t shared = static_cast<size_t>(warps) * nearest_shared(params.width);
  kernel<<<blocks, 32 * warps, shared, static_cast<cudaStream_t>(stream)>>>(params, k, index,
                                                                            distance);
  return cudaPeekAtLastError();
}
