// rope: heads of any dtype, rotated one by one.
#include "bitdance_kernels.h"
#include "cpu/common/parallel.h"
#include "cpu/common/rotation.h"
#include "cpu/common/wide_rows.h"

namespace bdk {
namespace {

// Values a thread must have to be worth starting: about 5 us.
constexpr int64_t kGrain = 16384;

}  // namespace
}  // namespace bdk

int bdk_rope_cpu(const void* x, const float* freqs, void* y, int64_t batch, int64_t tokens,
                 int64_t heads, int64_t channels, int64_t x_batch, int64_t x_token, int64_t x_head,
                 int interleaved, int back, int dtype, int threads) {
  using namespace bdk;
  if (!is_dtype(dtype)) return BDK_BAD_DTYPE;
  if (batch < 0 || tokens < 0 || heads < 0 || channels < 2 || channels % 2 != 0 ||
      channels > kMaxHeadChannels || threads < 1) {
    return BDK_BAD_SIZE;
  }
  const WideRows in({const_cast<void*>(x), 0, dtype, 1}), out({y, 0, dtype, 1});
  const int64_t grain = kGrain / (heads * channels + 1) + 1;
  parallel_for(batch * tokens, grain, 1, threads, [&](int64_t begin, int64_t end) {
    Rotation rotate(channels, interleaved != 0, back != 0);
    alignas(64) float buffers[2][kMaxHeadChannels];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / tokens, t = i % tokens;
      rotate.set(freqs + t * channels);
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t from = b * x_batch + t * x_token + h * x_head;
        const int64_t to = (i * heads + h) * channels;
        rotate(in.read(0, from, channels, buffers[0]), out.place(0, to, buffers[1]));
        out.put(0, to, channels, buffers[1]);
      }
    }
  });
  return BDK_OK;
}
