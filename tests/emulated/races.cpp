// A few blocks of one kernel, for the sanitizer (see card.h): `-D<KERNEL>` chooses it.
#include <random>

#if defined(PATCH_ATTENTION)
#include "patch_attention.cpp"
#elif defined(BLOCK_DECODE_ATTENTION)
#include "block_decode_attention.cpp"
#elif defined(GROUP_NORM_SILU)
#include "group_norm_silu.cpp"
#elif defined(SKINNY_PRODUCT)
#include "skinny_product.cpp"
#elif defined(DENOISE_STEP_LINEAR)
#include "denoise_step_linear.cpp"
#endif

namespace {

[[maybe_unused]] std::vector<float> numbers(size_t count) {
  std::mt19937 generator(0);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

}  // namespace

int main() {
#if defined(PATCH_ATTENTION)
  for (int64_t patch : {16, 36}) {
    const int64_t heads = 1, head_dim = 64, stride = 3 * heads * head_dim;
    const int64_t sizes[] = {stride, 2, patch, heads, head_dim};
    std::vector<float> out(2 * patch * heads * head_dim);
    patch_attention(numbers(2 * patch * stride).data(), out.data(), sizes, 0.1f, 0);
  }
#elif defined(BLOCK_DECODE_ATTENTION)
  for (int64_t tokens : {4, 17}) {  // warps beside each other in keys, and in rows
    const int64_t D = 32, keys = 150, splits = 2;
    std::vector<uint16_t> q, cache;
    for (float x : numbers(tokens * D)) q.push_back(bdk::narrow(x, __half{}));
    for (float x : numbers(keys * D)) cache.push_back(bdk::narrow(x, __half{}));
    std::vector<uint16_t> out(tokens * D);
    std::vector<float> sums(tokens * splits * D), top(tokens * splits), total(tokens * splits);
    const int length = 150;
    const int64_t sizes[] = {1, tokens, 1,        1, D, keys,     splits, tokens * D,
                             D, D,      keys * D, D, D, keys * D, D,      D};
    decode(q.data(), cache.data(), cache.data(), &length, out.data(), sums.data(), top.data(),
           total.data(), sizes, 0.2f, 0, 0);
  }
#elif defined(GROUP_NORM_SILU)
  const int64_t channels = 16, positions = 40, groups = 2, chunk = 16, chunks = 3;
  std::vector<float> x = numbers(channels * positions), y(x.size()), grad_x(x.size());
  std::vector<float> affine = numbers(channels), grad_affine[4];
  std::vector<float> moments(2 * chunks * channels), sums(2 * chunks * channels);
  std::vector<float> coefficients(5 * channels);
  for (auto& values : grad_affine) values.resize(channels);
  for (bool backward : {false, true}) {
    void* const tensors[] = {x.data(),
                             backward ? nullptr : y.data(),
                             backward ? x.data() : nullptr,
                             backward ? grad_x.data() : nullptr,
                             affine.data(),
                             affine.data(),
                             affine.data(),
                             affine.data(),
                             grad_affine[0].data(),
                             grad_affine[1].data(),
                             grad_affine[2].data(),
                             grad_affine[3].data(),
                             moments.data(),
                             sums.data(),
                             coefficients.data()};
    const int64_t sizes[] = {1,
                             channels,
                             positions,
                             groups,
                             chunk,
                             1,
                             bdk::kFloat32,
                             0,
                             bdk::kFloat32,
                             0,
                             bdk::kFloat32,
                             0,
                             bdk::kFloat32,
                             0,
                             bdk::kFloat32};
    group_norm_silu(tensors, sizes, 1e-6);
  }
#elif defined(SKINNY_PRODUCT)
  // Several chunks of channels; then heads that are normalized. Without clusters, whose stores the
  // emulation delays: those are tested by their results.
  const int64_t rows = 9, channels = 416, features = 96, head_dim = 32;
  std::vector<uint16_t> x(rows * channels, 0x3C00), weight(features * channels, 0x3C00);
  std::vector<uint16_t> y(rows * features), modulation(rows * channels, 0x3C00), cache(y);
  std::vector<float> freqs(rows * head_dim);
  const int position = 0;
  const int64_t late[19] = {};
  void* tensors[19] = {x.data(),          nullptr,           weight.data(),     nullptr,
                       modulation.data(), modulation.data(), modulation.data(), modulation.data()};
  tensors[10] = y.data();
  const int64_t sizes[27] = {rows, channels, features, 1, 1, 3, 2, 1, channels, channels, channels};
  const int64_t heads[27] = {rows,     channels,
                             features, 2,
                             3,        2,
                             1,        1,
                             channels, 0,
                             0,        0,
                             0,        0,
                             head_dim, head_dim,
                             0,        head_dim,
                             head_dim, rows,
                             1,        1,
                             head_dim, 0,
                             2,        bdk::kFloat16};
  const char* message = skinny_product(tensors, sizes, 1e-6f, 1, late, 1);
  void* of_heads[] = {
      y.data(),     cache.data(),      cache.data(),     const_cast<int*>(&position),
      freqs.data(), modulation.data(), modulation.data()};
  for (int i = 0; i < 7; ++i) tensors[12 + i] = of_heads[i];
  if (message == nullptr) message = skinny_product(tensors, heads, 1e-6f, 1, late, 1);
  return message != nullptr;
#elif defined(DENOISE_STEP_LINEAR)
  const int64_t tokens = 20, patch = 4, bits = 32, features = 32;
  std::vector<float> state = numbers(tokens * bits), y(state), table(3), moments(tokens * 4);
  std::vector<uint16_t> x0(tokens * bits), weight(features * bits), stream(tokens * features);
  const int64_t step = 0, keys[15] = {}, late[12] = {};
  void* tensors[12] = {state.data(), x0.data(), table.data(), const_cast<int64_t*>(&step)};
  tensors[6] = const_cast<int64_t*>(keys);
  void* rest[] = {weight.data(), nullptr, y.data(), stream.data(), moments.data()};
  for (int i = 0; i < 5; ++i) tensors[7 + i] = rest[i];
  const int64_t sizes[] = {tokens, patch, bits, features, 0};
  return denoise_step_linear(tensors, sizes, 1, late, 1) != nullptr;
#endif
}
