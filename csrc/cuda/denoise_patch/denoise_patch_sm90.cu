// denoise_patch: choose the kernel, clear the words of its exchange, launch it cooperatively.
#include "bitdance_kernels_cuda.h"
#include "common/dtype.h"
#include "cuda/common/launch.h"
#include "cuda/denoise_patch/denoise_patch_sm90.cuh"

namespace bdk {
namespace {

// Whether there is a kernel for heads of these widths; `heads` of attention, 0 without.
constexpr bool is_width(int64_t channels, int64_t hidden, int64_t heads) {
  if (2 * hidden != 3 * channels) return false;
  if (heads != 0) return channels == 768 && heads == channels / kPatchHeadDim;
  return channels == 768 || channels == 1024 || channels == 1280;
}

// Rows that there is a kernel for. At 1280 channels registers do not suffice for 32.
constexpr int max_rows(int64_t channels) { return channels <= 1024 ? kPatchMaxRows : 16; }

cudaError_t count_multiprocessors(int device, int* count) {
  return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

// All blocks run at once, and a multiprocessor has one. Each has at least one tile of w1 and of qkv
// (2 H = 3 C), because in a full stage of the exchange every block writes.
bool is_enough(int multiprocessors, int64_t channels, int64_t hidden) {
  return kPatchTiles * multiprocessors >= hidden / 8 && multiprocessors >= channels / 16;
}

template <class T, int kC, int kH, int kRows, bool kAttention>
cudaError_t launch(DenoisePatchParams params, int multiprocessors, cudaStream_t stream) {
  using Head = DenoisePatch<T, kC, kH, kRows, kAttention>;
  constexpr int kSharedBytes = Head::kSharedBytes;
  const void* kernel =
      reinterpret_cast<const void*>(denoise_patch_kernel<T, kC, kH, kRows, kAttention>);
  cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (status != cudaSuccess) return status;
  const size_t bytes = sizeof(T) * ring_stages(kAttention) * params.rows * Head::Block::kWidest;
  status = cudaMemsetAsync(params.words, 0xFF, bytes, stream);
  if (status != cudaSuccess) return status;
  const unsigned int blocks = multiprocessors < kH / 8 ? multiprocessors : kH / 8;
  void* arguments[] = {&params};
  return cudaLaunchCooperativeKernel(kernel, blocks, kPatchThreads, arguments, kSharedBytes,
                                     stream);
}

template <class T, int kC, int kH, bool kAttention>
cudaError_t launch_rows(const DenoisePatchParams& params, int multiprocessors,
                        cudaStream_t stream) {
  if constexpr (max_rows(kC) > 16) {
    if (params.rows > 16) return launch<T, kC, kH, 32, kAttention>(params, multiprocessors, stream);
  }
  if (params.rows > 8) return launch<T, kC, kH, 16, kAttention>(params, multiprocessors, stream);
  return launch<T, kC, kH, 8, kAttention>(params, multiprocessors, stream);
}

template <class T>
cudaError_t launch_widths(const DenoisePatchParams& params, int64_t channels, int multiprocessors,
                          cudaStream_t stream) {
  if (params.qkv_weight != nullptr) {
    return launch_rows<T, 768, 1152, true>(params, multiprocessors, stream);
  }
  if (channels == 768) return launch_rows<T, 768, 1152, false>(params, multiprocessors, stream);
  if (channels == 1024) return launch_rows<T, 1024, 1536, false>(params, multiprocessors, stream);
  return launch_rows<T, 1280, 1920, false>(params, multiprocessors, stream);
}

}  // namespace
}  // namespace bdk

int bdk_denoise_patch_max_rows(int64_t channels, int64_t hidden, int64_t heads, int device) {
  using namespace bdk;
  int multiprocessors = 0;
  if (!is_width(channels, hidden, heads)) return 0;
  const bool known = count_multiprocessors(device, &multiprocessors) == cudaSuccess;
  // Of a card that cannot be asked, the launch tells more.
  return !known || is_enough(multiprocessors, channels, hidden) ? max_rows(channels) : 0;
}

int bdk_denoise_patch_cuda(const float* x, const void* modulation, const float* table,
                           const void* in_weight, const void* in_bias, const void* norm_weight,
                           const void* norm_bias, const void* weight1, const void* bias1,
                           const void* weight2, const void* bias2, const void* out_weight,
                           const void* out_bias, const void* attention_norm_weight_or_null,
                           const void* attention_norm_bias_or_null, const void* qkv_weight_or_null,
                           const void* qkv_bias_or_null, const void* wo_weight_or_null,
                           const void* wo_bias_or_null, const float* cfg_or_null,
                           const float* noise_or_null, const int64_t* keys_or_null, float* y,
                           int32_t* status, void* words, int64_t rows, int64_t patch,
                           int64_t channels, int64_t hidden, int64_t heads, int64_t layers,
                           int64_t projections, int64_t evaluations, float eps, int squash,
                           int max_polls, int dtype, int device, void* stream) {
  using namespace bdk;
  if (dtype != kFloat16 && dtype != kBFloat16) return BDK_BAD_DTYPE;
  const void* const attention[] = {attention_norm_weight_or_null,
                                   attention_norm_bias_or_null,
                                   qkv_weight_or_null,
                                   qkv_bias_or_null,
                                   wo_weight_or_null,
                                   wo_bias_or_null};
  for (const void* part : attention) {
    if ((part == nullptr) != (heads == 0)) return BDK_BAD_SIZE;
  }
  const int halves = cfg_or_null != nullptr ? 2 : 1;
  if (!is_width(channels, hidden, heads) || rows < 0 || rows > max_rows(channels) || patch < 1 ||
      (heads != 0 && patch > kPatchMaxTokens) || rows % (halves * patch) != 0 || layers < 1 ||
      projections < 1 || evaluations < 0 || evaluations >= INT32_MAX / kPatchMaxRows ||
      max_polls < 1) {
    return BDK_BAD_SIZE;
  }
  if (rows > 0 && noise_or_null == nullptr && keys_or_null == nullptr) return BDK_BAD_SIZE;
  for (const void* read : {modulation, in_weight, norm_weight, norm_bias, weight1, weight2,
                           out_weight, attention_norm_weight_or_null, qkv_weight_or_null,
                           wo_weight_or_null, static_cast<const void*>(words)}) {
    if (reinterpret_cast<uintptr_t>(read) % 16 != 0) return BDK_BAD_SIZE;
  }
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const cudaError_t cleared = cudaMemsetAsync(status, 0, sizeof *status, on);
  if (cleared != cudaSuccess || rows == 0) return cleared;
  int multiprocessors = 0;
  const cudaError_t counted = count_multiprocessors(device, &multiprocessors);
  if (counted != cudaSuccess) return counted;
  if (!is_enough(multiprocessors, channels, hidden)) return BDK_BAD_SIZE;

  const auto integer = [](int64_t value) { return static_cast<int>(value); };
  const auto weight = [](const void* packed) { return static_cast<const uint4*>(packed); };
  DenoisePatchParams params{};
  params.x = x;
  params.modulation = modulation;
  params.table = table;
  params.in_weight = weight(in_weight);
  params.in_bias = in_bias;
  params.norm_weight = norm_weight;
  params.norm_bias = norm_bias;
  params.weight1 = weight(weight1);
  params.bias1 = bias1;
  params.weight2 = weight(weight2);
  params.bias2 = bias2;
  params.out_weight = weight(out_weight);
  params.out_bias = out_bias;
  params.attention_norm_weight = attention_norm_weight_or_null;
  params.attention_norm_bias = attention_norm_bias_or_null;
  params.qkv_weight = weight(qkv_weight_or_null);
  params.qkv_bias = qkv_bias_or_null;
  params.wo_weight = weight(wo_weight_or_null);
  params.wo_bias = wo_bias_or_null;
  params.cfg = cfg_or_null;
  params.noise = noise_or_null;
  params.keys = keys_or_null;
  params.y = y;
  params.status = status;
  params.words = static_cast<uint4*>(words);
  params.width = ((heads != 0 ? 6 : 3) * projections + 2) * channels;
  params.rows = integer(rows);
  params.tokens = integer(rows / halves);
  params.patch = integer(patch);
  params.layers = integer(layers);
  params.projections = integer(projections < layers ? projections : layers);
  params.evaluations = integer(evaluations);
  params.max_polls = max_polls;
  params.eps = eps;
  params.squash = squash != 0;
  if (dtype == kFloat16) return launch_widths<__half>(params, channels, multiprocessors, on);
  return launch_widths<__nv_bfloat16>(params, channels, multiprocessors, on);
}
