// conv3x3: the entry, choice of the instruction set.
#include "cpu/conv3x3/conv3x3.h"

#include "bitdance_kernels.h"
#include "cpu/common/isa.h"
#include "cpu/common/parallel.h"

namespace bdk {
namespace {

// Multiply-adds that a thread must have to be worth starting: about 3 us.
constexpr int64_t kGrain = int64_t{1} << 17;
constexpr Conv3x3Loops kScalarLoops = {conv3x3_rows};

const Conv3x3Loops& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kConv3x3Avx512;
  if (active_isa() == kAvx2) return kConv3x3Avx2;
#endif
  return kScalarLoops;
}

}  // namespace
}  // namespace bdk

int bdk_conv3x3_cpu(const float* x, const float* weight, const float* bias_or_null,
                    const float* addend_or_null, float* y, float* scratch, int64_t images,
                    int64_t height, int64_t width, int64_t channels, int64_t features,
                    int64_t upscale, int64_t at_once, int64_t scratch_size, int threads) {
  using namespace bdk;
  if (images < 0 || height < 1 || width < 1 || channels < 1 || features < 0 || upscale < 1 ||
      upscale > 16 || at_once < 1 || scratch_size < 0 ||
      features % (kPanel * upscale * upscale) != 0 || threads < 1) {
    return BDK_BAD_SIZE;
  }
  const Conv3x3Loops& loops = choose();
  const Conv3x3 conv = {x,     weight,   bias_or_null, addend_or_null, y,      height,
                        width, channels, features,     upscale,        at_once};
  const int64_t rows = images * height;
  const int64_t grain = kGrain / (9 * width * channels * features + 1) + 1;
  const int64_t parts = rows / grain < 1 ? 1 : rows / grain > threads ? threads : rows / grain;
  parallel_for(parts, 1, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      loops.rows(conv, rows * part / parts, rows * (part + 1) / parts,
                 scratch + part * scratch_size);
    }
  });
  return BDK_OK;
}
