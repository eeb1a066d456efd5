// group_norm_silu: entries, moments and coefficients, choice of the instruction set. Maps of halves
// are widened a chunk or a piece of a span at a time; the loops know float32 alone.
#include "cpu/group_norm_silu/group_norm_silu.h"

#include <algorithm>
#include <tuple>

#include "bitdance_kernels.h"
#include "cpu/common/isa.h"
#include "cpu/common/pages.h"
#include "cpu/common/parallel.h"
#include "cpu/common/wide_rows.h"

namespace bdk {
namespace {

// Values a thread must have to be worth starting: about 5 us.
constexpr int64_t kGrain = 8192;

struct FeatureMap {
  int64_t images, channels, positions, groups;
  bool last;
  int64_t chunk;  // positions taken at a time, if the map is channels-last
};

// The values of a map, of any dtype, as float32. A copy has a buffer of its own.
class Values {
 public:
  Values(const void* data, int dtype)
      : rows_({const_cast<void*>(data), 0, dtype, 1}), halves_(dtype != kFloat32) {}
  Values(const Values& other) : rows_(other.rows_), halves_(other.halves_) {}

  // At most kNormHalves of them, if they are halves.
  const float* read(int64_t offset, int64_t count) { return rows_.read(0, offset, count, buffer_); }
  // Where to write values; `put` then stores them.
  float* place(int64_t offset) { return rows_.place(0, offset, buffer_); }
  void put(int64_t offset, int64_t count) { rows_.put(0, offset, count, buffer_); }

  // Values of a span that are taken at a time, of `count`.
  int64_t piece(int64_t count) const { return halves_ && count > kNormSpan ? kNormSpan : count; }
  // Positions of `channels` values that are taken at a time, of `count`.
  int64_t positions(int64_t count, int64_t channels) const {
    const int64_t few = kNormFew / channels > 0 ? kNormFew / channels : 1;
    return halves_ && count > few ? few : count;
  }

 private:
  WideRows rows_;
  bool halves_;
  alignas(64) float buffer_[kNormHalves];
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

bool fits(const FeatureMap& m, bool halves) {
  return m.images >= 0 && m.channels > 0 && m.groups > 0 && m.channels % m.groups == 0 &&
         m.positions >= 0 && m.chunk > 0 && (!m.last || m.channels <= kNormMaxChannels) &&
         (!m.last || !halves || m.chunk <= kNormHalves / m.channels);
}

int64_t element_size(int dtype) { return dtype == kFloat32 ? 4 : 2; }

int64_t chunks_of(const FeatureMap& m) { return (m.positions + m.chunk - 1) / m.chunk; }

// Calls body(image, chunk, offset of its first value, its positions, maps..) for a channels-last
// map; the maps are the thread's own.
template <class Body, class... Maps>
void for_chunks(const FeatureMap& m, int threads, const Body& body, const Maps&... maps) {
  const int64_t chunks = chunks_of(m);
  const int64_t grain = kGrain / (m.chunk * m.channels) + 1;
  parallel_for(m.images * chunks, grain, 1, threads, [&](int64_t begin, int64_t end) {
    std::tuple<Maps...> own(maps...);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / chunks, first = i % chunks * m.chunk;
      const int64_t some = m.positions - first < m.chunk ? m.positions - first : m.chunk;
      const int64_t offset = (image * m.positions + first) * m.channels;
      std::apply([&](auto&... of) { body(image, i % chunks, offset, some, of...); }, own);
    }
  });
}

// Calls body(image, channel, offset of its first value, values, maps..) for every piece of every
// channel of a contiguous map.
template <class Body, class... Maps>
void for_channels(const FeatureMap& m, int threads, const Body& body, const Maps&... maps) {
  parallel_for(m.images * m.channels, kGrain / (m.positions + 1) + 1, 1, threads,
               [&](int64_t begin, int64_t end) {
                 std::tuple<Maps...> own(maps...);
                 const int64_t piece = std::min({maps.piece(m.positions)...});
                 for (int64_t i = begin; i < end; ++i) {
                   for (int64_t p = 0; p < m.positions; p += piece) {
                     const int64_t some = m.positions - p < piece ? m.positions - p : piece;
                     std::apply(
                         [&](auto&... of) {
                           body(i / m.channels, i % m.channels, i * m.positions + p, some, of...);
                         },
                         own);
                   }
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
void find_moments(const FeatureMap& m, const Values& map, Spread* spreads, int threads) {
  const GroupNormLoops& loops = choose();
  if (m.last) {
    const int64_t chunks = chunks_of(m);
    for_chunks(
        m, threads,
        [&](int64_t image, int64_t chunk, int64_t offset, int64_t some, Values& x) {
          loops.moments_last(x.read(offset, some * m.channels), some, m.channels, m.groups,
                             spreads + (image * chunks + chunk) * m.groups);
        },
        map);
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
                 Values x = map;
                 const int64_t piece = x.piece(span);
                 for (int64_t i = begin; i < end; ++i) {
                   Spread whole = {0.0, 0.0, 0.0};
                   for (int64_t p = 0; p < span; p += piece) {
                     const int64_t some = span - p < piece ? span - p : piece;
                     whole = merge(whole, loops.moments_span(x.read(i * span + p, some), some));
                   }
                   spreads[i] = whole;
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
void find_sums(const FeatureMap& m, const Values& grad_values, const Values& x_values,
               const float* coefficients, bool silu, double* sums, float* chunk_sums, int threads) {
  const GroupNormLoops& loops = choose();
  const int64_t channels = m.channels;
  if (m.last) {
    const int64_t chunks = chunks_of(m);
    for_chunks(
        m, threads,
        [&](int64_t image, int64_t chunk, int64_t offset, int64_t some, Values& grad, Values& x) {
          const int64_t count = some * channels;
          float* to = chunk_sums + (image * chunks + chunk) * 2 * channels;
          loops.sums_last(grad.read(offset, count), x.read(offset, count), some, channels,
                          coefficients_at(coefficients, image, channels), silu, to, to + channels);
        },
        grad_values, x_values);
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
  for (int64_t i = 0; i < m.images * 2 * channels; ++i) sums[i] = 0.0;
  for_channels(
      m, threads,
      [&](int64_t image, int64_t c, int64_t offset, int64_t some, Values& grad, Values& x) {
        const NormCoefficients k = coefficients_at(coefficients, image, channels);
        double* to = sums + image * 2 * channels + c;
        loops.sums_span(grad.read(offset, some), x.read(offset, some), some, k.mean[c], k.a[c],
                        k.d[c], silu, to, to + channels);
      },
      grad_values, x_values);
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

int bdk_group_norm_silu_cpu(const void* x, void* y, int64_t images, int64_t channels,
                            int64_t positions, int64_t groups, int channels_last, int64_t chunk,
                            const float* weight_or_null, const float* bias_or_null,
                            const float* scale_or_null, const float* shift_or_null, int silu,
                            double eps, double* spreads_or_null, float* coefficients_or_null,
                            int dtype, int threads) {
  using namespace bdk;
  if (!is_dtype(dtype)) return BDK_BAD_DTYPE;
  const FeatureMap map = {images, channels, positions, groups, channels_last != 0, chunk};
  const NormAffine affine = {weight_or_null, bias_or_null, scale_or_null, shift_or_null};
  if (!fits(map, dtype != kFloat32) || threads < 1) return BDK_BAD_SIZE;
  if (images == 0 || positions == 0) return BDK_OK;
  Spread own_spreads[kNormSmallSpreads];
  float own_coefficients[5 * kNormSmallChannels];
  Spread* moments = reinterpret_cast<Spread*>(spreads_or_null);
  float* coefficients = coefficients_or_null;
  if (moments == nullptr || coefficients == nullptr) {
    const int64_t chunks = map.last ? chunks_of(map) : 1;
    if (images * chunks * groups > kNormSmallSpreads || images * channels > kNormSmallChannels) {
      return BDK_BAD_SIZE;
    }
    moments = own_spreads;
    coefficients = own_coefficients;
  }
  const Values x_values(x, dtype), y_values(y, dtype);
  prefer_large_pages(y, element_size(dtype) * images * channels * positions);
  find_moments(map, x_values, moments, threads);
  find_coefficients(map, affine, moments, eps, coefficients);
  const GroupNormLoops& loops = choose();
  if (map.last) {
    for_chunks(
        map, threads,
        [&](int64_t image, int64_t, int64_t offset, int64_t some, Values& from, Values& to) {
          const NormCoefficients k = coefficients_at(coefficients, image, channels);
          const int64_t piece = from.positions(some, channels);
          for (int64_t p = 0; p < some; p += piece) {
            const int64_t few = some - p < piece ? some - p : piece, at = offset + p * channels;
            loops.apply_last(from.read(at, few * channels), few, channels, k, silu != 0,
                             to.place(at));
            to.put(at, few * channels);
          }
        },
        x_values, y_values);
  } else {
    for_channels(
        map, threads,
        [&](int64_t image, int64_t c, int64_t offset, int64_t some, Values& from, Values& to) {
          const NormCoefficients k = coefficients_at(coefficients, image, channels);
          loops.apply_span(from.read(offset, some), some, k.mean[c], k.a[c], k.d[c], silu != 0,
                           to.place(offset));
          to.put(offset, some);
        },
        x_values, y_values);
  }
  return BDK_OK;
}

int bdk_group_norm_silu_backward_cpu(const void* grad, const void* x, void* grad_x, int64_t images,
                                     int64_t channels, int64_t positions, int64_t groups,
                                     int channels_last, int64_t chunk, const float* weight_or_null,
                                     const float* bias_or_null, const float* scale_or_null,
                                     const float* shift_or_null, float* grad_weight_or_null,
                                     float* grad_bias_or_null, float* grad_scale_or_null,
                                     float* grad_shift_or_null, int silu, double eps,
                                     double* spreads, double* sums, float* coefficients,
                                     float* chunk_sums, int grad_dtype, int dtype, int threads) {
  using namespace bdk;
  if (!is_dtype(grad_dtype) || !is_dtype(dtype)) return BDK_BAD_DTYPE;
  const FeatureMap map = {images, channels, positions, groups, channels_last != 0, chunk};
  const NormAffine affine = {weight_or_null, bias_or_null, scale_or_null, shift_or_null};
  const NormGradients of = {grad_weight_or_null, grad_bias_or_null, grad_scale_or_null,
                            grad_shift_or_null};
  const bool halves = grad_dtype != kFloat32 || dtype != kFloat32;
  if (!fits(map, halves) || threads < 1) return BDK_BAD_SIZE;
  if (images == 0 || positions == 0) return BDK_OK;
  const Values grad_values(grad, grad_dtype), x_values(x, dtype), grad_x_values(grad_x, dtype);
  prefer_large_pages(grad_x, element_size(dtype) * images * channels * positions);
  Spread* moments = reinterpret_cast<Spread*>(spreads);
  find_moments(map, x_values, moments, threads);
  find_coefficients(map, affine, moments, eps, coefficients);
  find_sums(map, grad_values, x_values, coefficients, silu != 0, sums, chunk_sums, threads);
  find_gradients(map, affine, moments, eps, sums, coefficients, of);
  const GroupNormLoops& loops = choose();
  if (map.last) {
    for_chunks(
        map, threads,
        [&](int64_t image, int64_t, int64_t offset, int64_t some, Values& grads, Values& from,
            Values& to) {
          const int64_t count = some * channels;
          loops.backward_last(grads.read(offset, count), from.read(offset, count), some, channels,
                              coefficients_at(coefficients, image, channels), silu != 0,
                              to.place(offset));
          to.put(offset, count);
        },
        grad_values, x_values, grad_x_values);
  } else {
    for_channels(
        map, threads,
        [&](int64_t image, int64_t c, int64_t offset, int64_t some, Values& grads, Values& from,
            Values& to) {
          loops.backward_span(grads.read(offset, some), from.read(offset, some), some,
                              coefficients_at(coefficients, image, channels), c, silu != 0,
                              to.place(offset));
          to.put(offset, some);
        },
        grad_values, x_values, grad_x_values);
  }
  return BDK_OK;
}
