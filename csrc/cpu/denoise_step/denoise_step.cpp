// denoise_step: entry, choice of the instruction set. Guidance, noise and combination are applied
// to a tile of a row while it is in the first-level cache.
#include "cpu/denoise_step/denoise_step.h"

#include "bitdance_kernels.h"
#include "common/dtype.h"
#include "cpu/common/guidance.h"
#include "cpu/common/isa.h"
#include "cpu/common/normals.h"
#include "cpu/common/pages.h"
#include "cpu/common/parallel.h"

namespace bdk {
namespace {

constexpr int64_t kTile = 256;  // values
static_assert(kTile % (4 * kNormalBlocks) == 0, "the last blocks of a tile are drawn whole");
// Tiles a thread must have to be worth starting: about 10 us.
constexpr int64_t kGrainTiles = 32;

Affine choose_affine() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kAffineAvx512;
  if (active_isa() == kAvx2) return kAffineAvx2;
#endif
  return affine;
}

}  // namespace
}  // namespace bdk

int bdk_denoise_step_cpu(const float* x, const void* x0, const float* table, int64_t table_rows,
                         const void* step, int step_bytes, const float* cfg_or_null,
                         const float* noise_or_null, const int64_t* keys_or_null, float* y,
                         int64_t rows, int64_t elements, int dtype, int threads) {
  using namespace bdk;
  constexpr int64_t kMaxElements = int64_t{1} << 34;  // 32 bits count blocks of four
  if (!is_dtype(dtype)) return BDK_BAD_DTYPE;
  if (rows < 0 || elements < 0 || threads < 1 || (step_bytes != 4 && step_bytes != 8)) {
    return BDK_BAD_SIZE;
  }
  const int64_t at =
      step_bytes == 4 ? *static_cast<const int32_t*>(step) : *static_cast<const int64_t*>(step);
  if (at < 0 || at >= table_rows) return BDK_BAD_INDEX;
  if (rows == 0 || elements == 0) return BDK_OK;
  if (noise_or_null == nullptr && (keys_or_null == nullptr || elements > kMaxElements)) {
    return BDK_BAD_SIZE;
  }
  const Coefficients by{table[3 * at], table[3 * at + 1], table[3 * at + 2]};
  const float cfg = cfg_or_null != nullptr ? *cfg_or_null : 1.0f;
  const int64_t value_bytes = dtype == kFloat32 ? 4 : 2;
  const char* conditional = static_cast<const char*>(x0);
  const Guide guide_all = choose_guide(dtype);
  const Normals draw = choose_normals();
  const Affine combine = choose_affine();
  const int64_t row_tiles = (elements + kTile - 1) / kTile;
  prefer_large_pages(y, rows * elements * 4);
  parallel_for(rows * row_tiles, kGrainTiles, 1, threads, [=](int64_t begin, int64_t end) {
    alignas(64) float guided[kTile], normals[kTile];
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = tile / row_tiles;
      const int64_t first = tile % row_tiles * kTile;
      const int64_t count = elements - first < kTile ? elements - first : kTile;
      const int64_t i = row * elements + first;
      const char* from = conditional + i * value_bytes;
      guide_all(from, cfg_or_null != nullptr ? from + rows * elements * value_bytes : nullptr, cfg,
                guided, count);
      const float* noise = normals;
      if (noise_or_null != nullptr) {
        noise = noise_or_null + i;
      } else {
        draw(noise_key(keys_or_null + 3 * row), static_cast<uint32_t>(at + 1),
             static_cast<uint32_t>(first / 4), static_cast<int>((count + 3) / 4), normals);
      }
      combine(by, x + i, guided, noise, y + i, count);
    }
  });
  return BDK_OK;
}
