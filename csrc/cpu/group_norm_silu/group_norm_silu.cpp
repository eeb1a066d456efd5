// group_norm_silu: entries, moments and coefficients, choice of the instruction set.
#include "cpu/group_norm_silu/group_norm_silu.h"

#include "bitdance_kernels.h"
#include "cpu/common/isa.h"
#include "cpu/common/pages.h"
#include "cpu/common/parallel.h"

namespace bdk {
namespace {

// Values a thread must have to be worth starting: about 5 us.
constexpr int64_t kGrain = 8192;

struct FeatureMap {
  int64_t images, channels, positions, groups;
  bool last;
  int64_t chunk;  // positions taken at a time, if the map is channels-last
};

struct NormAffine {  // each may be null
  const float *weight, *bias, *scale, *shift;
};

struct NormGradients {  // [images, channels] each; null if not wanted
  float *weight, *bias, *scale, *shift;
};

const GroupNormLoops& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kGroupNormAvx512;
  if (active_isa() == kAvx2) return kGroupNormAvx2;
#endif
  return kGroupNormLoops;
}

bool fits(const FeatureMap& m) {
  return m.images >= 0 && m.channels > 0 && m.groups > 0 && m.channels % m.groups == 0 &&
         m.positions >= 0 && m.chunk > 0 && (!m.last || m.channels <= kNormMaxChannels);
}

int64_t chunks_of(const FeatureMap& m) { return (m.positions + m.chunk - 1) / m.chunk; }

// Calls body(image, chunk, offset of its first value, its positions) for a channels-last map.
template <class Body>
void for_chunks(const FeatureMap& m, int threads, const Body& body) {
  const int64_t chunks = chunks_of(m);
  const int64_t grain = kGrain / (m.chunk * m.channels) + 1;
  parallel_for(m.images * chunks, grain, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / chunks, first = i % chunks * m.chunk;
      const int64_t some = m.positions - first < m.chunk ? m.positions - first : m.chunk;
      body(image, i % chunks, (image * m.positions + first) * m.channels, some);
    }
  });
}

// Calls body(image, channel, offset of its first value) for a contiguous map.
template <class Body>
void for_channels(const FeatureMap& m, int threads, const Body& body) {
  parallel_for(m.images * m.channels, kGrain / (m.positions + 1) + 1, 1, threads,
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   body(i / m.channels, i % m.channels, i * m.positions);
                 }
               });
}

// spreads: [chunks, groups] of an image. Combines those of all chunks into those of chunk 0, in the
// order of the chunks, so that the result does not depend on the threads. Sums are relative to the
// mean of chunk 0.
void merge_chunks(Spread* spreads, int64_t chunks, int64_t groups) {
  for (int64_t g = 0; g < groups; ++g) {
    const double about = spreads[g].mean;
    double count = 0.0, sum = 0.0, squares = 0.0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const Spread of = spreads[chunk * groups + g];
      const double distance = of.mean - about;
      count += of.count;
      sum += of.count * distance;
      squares += of.squares + of.count * distance * distance;
    }
    const double shift = sum / count, rest = squares - sum * shift;
    spreads[g] = {count, about + shift, rest < 0.0 ? 0.0 : rest};
  }
}

// spreads: [images, chunks or 1, groups]; the results are in those of chunk 0.
void find_moments(const FeatureMap& m, const float* x, Spread* spreads, int threads) {
  const GroupNormLoops& loops = choose();
  if (m.last) {
    const int64_t chunks = chunks_of(m);
    for_chunks(m, threads, [&](int64_t image, int64_t chunk, int64_t offset, int64_t some) {
      loops.moments_last(x + offset, some, m.channels, m.groups,
                         spreads + (image * chunks + chunk) * m.groups);
    });
    parallel_for(m.images, 1 + kGrain / (chunks * m.groups + 1), 1, threads,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t image = begin; image < end; ++image) {
                     merge_chunks(spreads + image * chunks * m.groups, chunks, m.groups);
                   }
                 });
    return;
  }
  const int64_t span = m.channels / m.groups * m.positions;
  parallel_for(m.images * m.groups, kGrain / (span + 1) + 1, 1, threads,
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   spreads[i] = loops.moments_span(x + i * span, span);
                 }
               });
}

double or_else(const float* values, int64_t at, double otherwise) {
  return values != nullptr ? static_cast<double>(values[at]) : otherwise;
}

ChannelAffine affine_at(const NormAffine& affine, int64_t image, int64_t c, int64_t channels) {
  const int64_t at = image * channels + c;
  return {or_else(affine.weight, c, 1.0), or_else(affine.bias, c, 0.0),
          or_else(affine.scale, at, 1.0), or_else(affine.shift, at, 0.0)};
}

// Mean, a and d of every channel of every image: coefficients [images, 5, channels].
void find_coefficients(const FeatureMap& m, const NormAffine& affine, const Spread* spreads,
                       double eps, float* coefficients) {
  const int64_t width = m.channels / m.groups;
  const int64_t stride = (m.last ? chunks_of(m) : 1) * m.groups;
  for (int64_t image = 0; image < m.images; ++image) {
    float* k = coefficients + image * 5 * m.channels;
    for (int64_t c = 0; c < m.channels; ++c) {
      const Spread spread = spreads[image * stride + c / width];
      const ChannelAffine numbers = affine_at(affine, image, c, m.channels);
      k[c] = static_cast<float>(spread.mean);
      k[m.channels + c] = channel_slope(numbers, reciprocal_deviation(spread, eps));
      k[2 * m.channels + c] = channel_offset(numbers);
    }
  }
}

NormCoefficients coefficients_at(const float* coefficients, int64_t image, int64_t channels) {
  const float* k = coefficients + image * 5 * channels;
  return {k, k + channels, k + 2 * channels, k + 3 * channels, k + 4 * channels};
}

// sums: [images, chunks or 1, 2, channels]; the results are in those of chunk 0.
void find_sums(const FeatureMap& m, const float* grad, const float* x, const float* coefficients,
               bool silu, double* sums, float* chunk_sums, int threads) {
  const GroupNormLoops& loops = choose();
  const int64_t channels = m.channels;
  if (m.last) {
    const int64_t chunks = chunks_of(m);
    for_chunks(m, threads, [&](int64_t image, int64_t chunk, int64_t offset, int64_t some) {
      float* to = chunk_sums + (image * chunks + chunk) * 2 * channels;
      loops.sums_last(grad + offset, x + offset, some, channels,
                      coefficients_at(coefficients, image, channels), silu, to, to + channels);
    });
    for (int64_t image = 0; image < m.images; ++image) {
      for (int64_t i = 0; i < 2 * channels; ++i) {
        double sum = 0.0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          sum += static_cast<double>(chunk_sums[(image * chunks + chunk) * 2 * channels + i]);
        }
        sums[image * 2 * channels + i] = sum;
      }
    }
    return;
  }
  for_channels(m, threads, [&](int64_t image, int64_t c, int64_t offset) {
    const NormCoefficients k = coefficients_at(coefficients, image, channels);
    double* to = sums + image * 2 * channels + c;
    loops.sums_span(grad + offset, x + offset, m.positions, k.mean[c], k.a[c], k.d[c], silu, to,
                    to + channels);
  });
}

// Gradients of weight, bias, scale and shift, and coefficients q and r of every channel.
void find_gradients(const FeatureMap& m, const NormAffine& affine, const Spread* spreads,
                    double eps, const double* sums, float* coefficients, const NormGradients& of) {
  const int64_t channels = m.channels, width = channels / m.groups;
  const int64_t stride = (m.last ? chunks_of(m) : 1) * m.groups;
  const double size = static_cast<double>(width * m.positions);
  for (int64_t image = 0; image < m.images; ++image) {
    float* k = coefficients + image * 5 * channels;
    const double* grad_z = sums + image * 2 * channels;
    const double* grad_z_x = grad_z + channels;
    for (int64_t g = 0; g < m.groups; ++g) {
      const Spread spread = spreads[image * stride + g];
      const double rstd = reciprocal_deviation(spread, eps);
      double along_one = 0.0, along_unit = 0.0;
      for (int64_t c = g * width; c < (g + 1) * width; ++c) {
        const int64_t at = image * channels + c;
        const ChannelAffine numbers = affine_at(affine, image, c, channels);
        const ChannelGradients found = channel_gradients(numbers, rstd, grad_z[c], grad_z_x[c]);
        along_one += found.along_one;
        along_unit += found.along_unit;
        if (of.weight != nullptr) of.weight[at] = static_cast<float>(found.weight);
        if (of.bias != nullptr) of.bias[at] = static_cast<float>(found.bias);
        if (of.scale != nullptr) of.scale[at] = static_cast<float>(found.scale);
        if (of.shift != nullptr) of.shift[at] = static_cast<float>(found.shift);
      }
      for (int64_t c = g * width; c < (g + 1) * width; ++c) {
        k[3 * channels + c] = static_cast<float>(rstd * along_one / size);
        k[4 * channels + c] = static_cast<float>(rstd * rstd * along_unit / size);
      }
    }
  }
}

}  // namespace
}  // namespace bdk

int bdk_group_norm_silu_cpu(const float* x, float* y, int64_t images, int64_t channels,
                            int64_t positions, int64_t groups, int channels_last, int64_t chunk,
                            const float* weight_or_null, const float* bias_or_null,
                            const float* scale_or_null, const float* shift_or_null, int silu,
                            double eps, double* spreads, float* coefficients, int threads) {
  using namespace bdk;
  const FeatureMap map = {images, channels, positions, groups, channels_last != 0, chunk};
  const NormAffine affine = {weight_or_null, bias_or_null, scale_or_null, shift_or_null};
  if (!fits(map) || threads < 1) return BDK_BAD_SIZE;
  if (images == 0 || positions == 0) return BDK_OK;
  prefer_large_pages(y, 4 * images * channels * positions);
  Spread* moments = reinterpret_cast<Spread*>(spreads);
  find_moments(map, x, moments, threads);
  find_coefficients(map, affine, moments, eps, coefficients);
  const GroupNormLoops& loops = choose();
  if (map.last) {
    for_chunks(map, threads, [&](int64_t image, int64_t, int64_t offset, int64_t some) {
      loops.apply_last(x + offset, some, channels, coefficients_at(coefficients, image, channels),
                       silu != 0, y + offset);
    });
  } else {
    for_channels(map, threads, [&](int64_t image, int64_t c, int64_t offset) {
      const NormCoefficients k = coefficients_at(coefficients, image, channels);
      loops.apply_span(x + offset, positions, k.mean[c], k.a[c], k.d[c], silu != 0, y + offset);
    });
  }
  return BDK_OK;
}

int bdk_group_norm_silu_backward_cpu(const float* grad, const float* x, float* grad_x,
                                     int64_t images, int64_t channels, int64_t positions,
                                     int64_t groups, int channels_last, int64_t chunk,
                                     const float* weight_or_null, const float* bias_or_null,
                                     const float* scale_or_null, const float* shift_or_null,
                                     float* grad_weight_or_null, float* grad_bias_or_null,
                                     float* grad_scale_or_null, float* grad_shift_or_null, int silu,
                                     double eps, double* spreads, double* sums, float* coefficients,
                                     float* chunk_sums, int threads) {
  using namespace bdk;
  const FeatureMap map = {images, channels, positions, groups, channels_last != 0, chunk};
  const NormAffine affine = {weight_or_null, bias_or_null, scale_or_null, shift_or_null};
  const NormGradients of = {grad_weight_or_null, grad_bias_or_null, grad_scale_or_null,
                            grad_shift_or_null};
  if (!fits(map) || threads < 1) return BDK_BAD_SIZE;
  if (images == 0 || positions == 0) return BDK_OK;
  prefer_large_pages(grad_x, 4 * images * channels * positions);
  Spread* moments = reinterpret_cast<Spread*>(spreads);
  find_moments(map, x, moments, threads);
  find_coefficients(map, affine, moments, eps, coefficients);
  find_sums(map, grad, x, coefficients, silu != 0, sums, chunk_sums, threads);
  find_gradients(map, affine, moments, eps, sums, coefficients, of);
  const GroupNormLoops& loops = choose();
  if (map.last) {
    for_chunks(map, threads, [&](int64_t image, int64_t, int64_t offset, int64_t some) {
      loops.backward_last(grad + offset, x + offset, some, channels,
                          coefficients_at(coefficients, image, channels), silu != 0,
                          grad_x + offset);
    });
  } else {
    for_channels(map, threads, [&](int64_t image, int64_t c, int64_t offset) {
      loops.backward_span(grad + offset, x + offset, positions,
                          coefficients_at(coefficients, image, channels), c, silu != 0,
                          grad_x + offset);
    });
  }
  return BDK_OK;
}
