// unpack_signs: entry, scalar loops, choice of the instruction set.
#include "cpu/unpack_signs/unpack_signs.h"

#include <atomic>

#include "bitdance_kernels.h"
#include "common/dtype.h"
#include "cpu/common/isa.h"
#include "cpu/common/pages.h"
#include "cpu/common/parallel.h"

namespace bdk {
namespace {

// Packed bytes a thread must have to be worth starting: 256 KiB of float32 written.
constexpr int64_t kGrainBytes = 8192;
// Ranges of threads meet at multiples of a cache line of output.
constexpr int64_t kAlignBytes = 8;

template <class Pattern>
void unpack_signs_scalar(const uint8_t* packed, Pattern* y, int64_t bytes, Pattern one) {
  constexpr Pattern kSign = static_cast<Pattern>(Pattern{1} << (8 * sizeof(Pattern) - 1));
  for (int64_t i = 0; i < bytes; ++i, y += 8) {
    for (int j = 0; j < 8; ++j) {
      y[j] = static_cast<Pattern>(one | ((packed[i] >> j) & 1 ? 0 : kSign));
    }
  }
}

void unpack_signs_32_scalar(const uint8_t* packed, uint32_t* y, int64_t bytes) {
  unpack_signs_scalar(packed, y, bytes, kOne32);
}

}  // namespace

UnpackSigns32 choose_unpack_signs_32(bool streamed) {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return streamed ? stream_signs_32_avx512 : unpack_signs_32_avx512;
  if (active_isa() == kAvx2) return streamed ? stream_signs_32_avx2 : unpack_signs_32_avx2;
#endif
  (void)streamed;
  return unpack_signs_32_scalar;
}

UnpackSigns16 choose_unpack_signs_16(bool streamed) {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return streamed ? stream_signs_16_avx512 : unpack_signs_16_avx512;
  if (active_isa() == kAvx2) return streamed ? stream_signs_16_avx2 : unpack_signs_16_avx2;
#endif
  (void)streamed;
  return unpack_signs_scalar<uint16_t>;
}

namespace {

// unpack_run(packed, y, bytes) unpacks adjacent bytes; rows without gaps are one long run.
template <class Pattern, class UnpackRun>
void unpack_rows(const uint8_t* packed, Pattern* y, int64_t rows, int64_t row_bytes,
                 int64_t row_stride, bool streamed, int threads, const UnpackRun& unpack_run) {
  const auto fence = [=] {
    if (streamed) std::atomic_thread_fence(std::memory_order_seq_cst);
  };
  if (row_stride == row_bytes || rows == 1) {
    parallel_for(rows * row_bytes, kGrainBytes, kAlignBytes, threads,
                 [&](int64_t begin, int64_t end) {
                   unpack_run(packed + begin, y + begin * 8, end - begin);
                   fence();
                 });
    return;
  }
  const int64_t grain_rows = kGrainBytes / row_bytes + 1;
  parallel_for(rows, grain_rows, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      unpack_run(packed + row * row_stride, y + row * row_bytes * 8, row_bytes);
    }
    fence();
  });
}

}  // namespace
}  // namespace bdk

int bdk_unpack_signs_cpu(const uint8_t* packed, void* y, int64_t rows, int64_t channels,
                         int64_t row_stride, int dtype, int threads) {
  using namespace bdk;
  if (!is_dtype(dtype)) return BDK_BAD_DTYPE;
  if (rows < 0 || channels <= 0 || channels % 8 != 0 || threads < 1) return BDK_BAD_SIZE;
  const int64_t row_bytes = channels / 8;
  const int size = dtype == kFloat32 ? 4 : 2;
  prefer_large_pages(y, rows * channels * size);
  const bool streamed =
      streaming_pays(rows * channels * size) && reinterpret_cast<uintptr_t>(y) % (8 * size) == 0;
  if (dtype == kFloat32) {
    unpack_rows(packed, static_cast<uint32_t*>(y), rows, row_bytes, row_stride, streamed, threads,
                choose_unpack_signs_32(streamed));
  } else {
    const UnpackSigns16 unpack = choose_unpack_signs_16(streamed);
    const uint16_t one = dtype == kFloat16 ? kOne16 : kOneB16;
    unpack_rows(
        packed, static_cast<uint16_t*>(y), rows, row_bytes, row_stride, streamed, threads,
        [=](const uint8_t* run, uint16_t* out, int64_t bytes) { unpack(run, out, bytes, one); });
  }
  return BDK_OK;
}
