// A few blocks of one kernel, for the sanitizer (see card.h): `-D<KERNEL>` chooses it.
#include <random>

#if defined(PATCH_ATTENTION)
#include "patch_attention.cpp"
#elif defined(BLOCK_DECODE_ATTENTION)
#include "block_decode_attention.cpp"
#elif defined(GROUP_NORM_SILU)
#include "group_norm_silu.cpp"
#endif

namespace {

std::vector<float> numbers(size_t count) {
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
#endif
}
