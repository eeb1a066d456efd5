// finalize_bits: entry. A tile is guided, packed and unpacked while it is in the first-level cache.
#include "bitdance_kernels.h"
#include "common/dtype.h"
#include "cpu/common/guidance.h"
#include "cpu/common/pages.h"
#include "cpu/common/parallel.h"
#include "cpu/pack_signs/pack_signs.h"
#include "cpu/unpack_signs/unpack_signs.h"

namespace bdk {
namespace {

constexpr int64_t kTileBytes = 64;  // of bits: 512 values
// As in pack_signs.
constexpr int64_t kGrainBytes = 8192;

}  // namespace
}  // namespace bdk

int bdk_finalize_bits_cpu(const void* x0, const float* cfg, void* signs, uint8_t* packed,
                          int64_t values, int dtype, int threads) {
  using namespace bdk;
  if (!is_dtype(dtype)) return BDK_BAD_DTYPE;
  if (values < 0 || values % 8 != 0 || threads < 1) return BDK_BAD_SIZE;
  const int64_t value_bytes = dtype == kFloat32 ? 4 : 2;
  const char* conditional = static_cast<const char*>(x0);
  const char* unconditional = conditional + values * value_bytes;
  const uint16_t one = dtype == kFloat16 ? kOne16 : kOneB16;
  const Guide guide_all = choose_guide(dtype);
  const PackSigns32 pack = choose_pack_signs_32();
  const UnpackSigns32 unpack_32 = choose_unpack_signs_32();
  const UnpackSigns16 unpack_16 = choose_unpack_signs_16();
  prefer_large_pages(signs, values * value_bytes);
  parallel_for(values / 8, kGrainBytes, kTileBytes, threads, [=](int64_t begin, int64_t end) {
    alignas(64) float guided[8 * kTileBytes];
    for (int64_t byte = begin; byte < end; byte += kTileBytes) {
      const int64_t bytes = end - byte < kTileBytes ? end - byte : kTileBytes;
      const int64_t offset = 8 * byte * value_bytes;
      guide_all(conditional + offset, unconditional + offset, *cfg, guided, 8 * bytes);
      pack(reinterpret_cast<const uint32_t*>(guided), packed + byte, bytes);
      if (dtype == kFloat32) {
        unpack_32(packed + byte, static_cast<uint32_t*>(signs) + 8 * byte, bytes);
      } else {
        unpack_16(packed + byte, static_cast<uint16_t*>(signs) + 8 * byte, bytes, one);
      }
    }
  });
  return BDK_OK;
}
