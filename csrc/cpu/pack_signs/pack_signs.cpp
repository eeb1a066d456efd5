// pack_signs: entry, scalar loops, choice of the instruction set.
#include "cpu/pack_signs/pack_signs.h"

#include "bitdance_kernels.h"
#include "common/bits.h"
#include "common/dtype.h"
#include "cpu/common/isa.h"
#include "cpu/common/parallel.h"

namespace bdk {
namespace {

// Output bytes a thread must have to be worth starting: 256 KiB of float32 take about 15 us, and
// starting a parallel region about 5 us.
constexpr int64_t kGrainBytes = 8192;
// Ranges of threads meet at multiples of a cache line of output.
constexpr int64_t kAlignBytes = 64;

template <class Pattern>
void pack_signs_scalar(const Pattern* x, uint8_t* packed, int64_t bytes, Pattern infinity) {
  for (int64_t i = 0; i < bytes; ++i, x += 8) {
    uint32_t byte = 0;
    for (int j = 0; j < 8; ++j) byte |= positive(x[j], infinity) << j;
    packed[i] = static_cast<uint8_t>(byte);
  }
}

void pack_signs_32_scalar(const uint32_t* x, uint8_t* packed, int64_t bytes) {
  pack_signs_scalar(x, packed, bytes, kInfinity32);
}

void pack_signs_8_scalar(const uint8_t* x, uint8_t* packed, int64_t bytes) {
  pack_signs_scalar(x, packed, bytes, kMaxUint8);
}

}  // namespace

PackSigns32 choose_pack_signs_32() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return pack_signs_32_avx512;
  if (active_isa() == kAvx2) return pack_signs_32_avx2;
#endif
  return pack_signs_32_scalar;
}

PackSigns16 choose_pack_signs_16() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return pack_signs_16_avx512;
  if (active_isa() == kAvx2) return pack_signs_16_avx2;
#endif
  return pack_signs_scalar<uint16_t>;
}

namespace {

PackSigns8 choose_pack_signs_8() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return pack_signs_8_avx512;
  if (active_isa() == kAvx2) return pack_signs_8_avx2;
#endif
  return pack_signs_8_scalar;
}

// pack_run(x, packed, bytes) packs adjacent values; rows without gaps are one long run.
template <class Pattern, class PackRun>
void pack_rows(const Pattern* x, uint8_t* packed, int64_t rows, int64_t row_bytes,
               int64_t row_stride, int threads, const PackRun& pack_run) {
  if (row_stride == row_bytes * 8 || rows == 1) {
    parallel_for(
        rows * row_bytes, kGrainBytes, kAlignBytes, threads,
        [&](int64_t begin, int64_t end) { pack_run(x + begin * 8, packed + begin, end - begin); });
    return;
  }
  const int64_t grain_rows = kGrainBytes / row_bytes + 1;
  parallel_for(rows, grain_rows, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      pack_run(x + row * row_stride, packed + row * row_bytes, row_bytes);
    }
  });
}

}  // namespace
}  // namespace bdk

int bdk_pack_signs_cpu(const void* x, uint8_t* packed, int64_t rows, int64_t channels,
                       int64_t row_stride, int dtype, int threads) {
  using namespace bdk;
  if (!is_dtype(dtype) && dtype != kUint8) return BDK_BAD_DTYPE;
  if (rows < 0 || channels <= 0 || channels % 8 != 0 || threads < 1) return BDK_BAD_SIZE;
  const int64_t row_bytes = channels / 8;
  if (dtype == kFloat32) {
    pack_rows(static_cast<const uint32_t*>(x), packed, rows, row_bytes, row_stride, threads,
              choose_pack_signs_32());
  } else if (dtype == kUint8) {
    pack_rows(static_cast<const uint8_t*>(x), packed, rows, row_bytes, row_stride, threads,
              choose_pack_signs_8());
  } else {
    const PackSigns16 pack = choose_pack_signs_16();
    const uint16_t infinity = dtype == kFloat16 ? kInfinity16 : kInfinityB16;
    pack_rows(
        static_cast<const uint16_t*>(x), packed, rows, row_bytes, row_stride, threads,
        [=](const uint16_t* run, uint8_t* out, int64_t bytes) { pack(run, out, bytes, infinity); });
  }
  return BDK_OK;
}
