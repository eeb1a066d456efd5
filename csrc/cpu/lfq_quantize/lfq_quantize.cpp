// lfq_quantize: entry, scalar loops, choice of the instruction set.
#include "cpu/lfq_quantize/lfq_quantize.h"

#include "bitdance_kernels.h"
#include "common/bits.h"
#include "common/dtype.h"
#include "cpu/common/isa.h"
#include "cpu/common/pages.h"
#include "cpu/common/parallel.h"
#include "cpu/lfq_quantize/lfq_commitment.h"

namespace bdk {
namespace {

// As in pack_signs.
constexpr int64_t kGrainBytes = 8192;
constexpr int64_t kAlignBytes = 64;

template <class Pattern>
void lfq_quantize_scalar(const Pattern* x, Pattern* y, uint8_t* packed, int64_t bytes,
                         Pattern infinity, Pattern one) {
  constexpr Pattern kSign = static_cast<Pattern>(Pattern{1} << (8 * sizeof(Pattern) - 1));
  for (int64_t i = 0; i < bytes; ++i, x += 8, y += 8) {
    uint32_t byte = 0;
    for (int j = 0; j < 8; ++j) {
      const uint32_t bit = positive(x[j], infinity);
      byte |= bit << j;
      y[j] = static_cast<Pattern>(one | (bit ? 0 : kSign));
    }
    packed[i] = static_cast<uint8_t>(byte);
  }
}

void lfq_quantize_32_scalar(const uint32_t* x, uint32_t* y, uint8_t* packed, int64_t bytes) {
  lfq_quantize_scalar(x, y, packed, bytes, kInfinity32, kOne32);
}

LfqQuantize32 choose_32() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return lfq_quantize_32_avx512;
  if (active_isa() == kAvx2) return lfq_quantize_32_avx2;
#endif
  return lfq_quantize_32_scalar;
}

LfqQuantize16 choose_16() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return lfq_quantize_16_avx512;
  if (active_isa() == kAvx2) return lfq_quantize_16_avx2;
#endif
  return lfq_quantize_scalar<uint16_t>;
}

// quantize_run(x, y, packed, bytes) takes adjacent values; rows without gaps are one long run.
template <class Pattern, class QuantizeRun>
void quantize_rows(const Pattern* x, Pattern* y, uint8_t* packed, int64_t rows, int64_t row_bytes,
                   int64_t row_stride, int threads, const QuantizeRun& quantize_run) {
  if (row_stride == row_bytes * 8 || rows == 1) {
    parallel_for(rows * row_bytes, kGrainBytes, kAlignBytes, threads,
                 [&](int64_t begin, int64_t end) {
                   quantize_run(x + begin * 8, y + begin * 8, packed + begin, end - begin);
                 });
    return;
  }
  const int64_t grain_rows = kGrainBytes / row_bytes + 1;
  parallel_for(rows, grain_rows, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      quantize_run(x + row * row_stride, y + row * row_bytes * 8, packed + row * row_bytes,
                   row_bytes);
    }
  });
}

constexpr LfqCommitmentLoops kScalarCommitment = {lfq_commitment_sum, lfq_commitment_backward};

const LfqCommitmentLoops& choose_commitment() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kLfqCommitmentAvx512;
  if (active_isa() == kAvx2) return kLfqCommitmentAvx2;
#endif
  return kScalarCommitment;
}

}  // namespace
}  // namespace bdk

int bdk_lfq_quantize_cpu(const void* x, void* y, uint8_t* packed, int64_t rows, int64_t channels,
                         int64_t row_stride, int dtype, int threads) {
  using namespace bdk;
  if (!is_dtype(dtype)) return BDK_BAD_DTYPE;
  if (rows < 0 || channels <= 0 || channels % 8 != 0 || threads < 1) return BDK_BAD_SIZE;
  const int64_t row_bytes = channels / 8;
  prefer_large_pages(y, rows * channels * (dtype == kFloat32 ? 4 : 2));
  if (dtype == kFloat32) {
    quantize_rows(static_cast<const uint32_t*>(x), static_cast<uint32_t*>(y), packed, rows,
                  row_bytes, row_stride, threads, choose_32());
  } else {
    const LfqQuantize16 quantize = choose_16();
    const uint16_t infinity = dtype == kFloat16 ? kInfinity16 : kInfinityB16;
    const uint16_t one = dtype == kFloat16 ? kOne16 : kOneB16;
    quantize_rows(static_cast<const uint16_t*>(x), static_cast<uint16_t*>(y), packed, rows,
                  row_bytes, row_stride, threads,
                  [=](const uint16_t* run, uint16_t* out, uint8_t* bits, int64_t bytes) {
                    quantize(run, out, bits, bytes, infinity, one);
                  });
  }
  return BDK_OK;
}

int bdk_lfq_quantize_commitment_cpu(const float* x, float* y, uint8_t* packed, double* sums,
                                    int64_t rows, int64_t channels, int64_t row_stride,
                                    int64_t slices) {
  using namespace bdk;
  if (rows < 0 || channels <= 0 || channels % 8 != 0 || slices < 1) return BDK_BAD_SIZE;
  prefer_large_pages(y, rows * channels * 4);
  const LfqQuantize32 quantize = choose_32();
  const LfqCommitmentLoops& loops = choose_commitment();
  constexpr int64_t kBytes = 128;  // of a piece, whose 4 KB of values stay in the nearest cache
  parallel_for(slices, 1, 1, static_cast<int>(slices), [&](int64_t first, int64_t last) {
    for (int64_t slice = first; slice < last; ++slice) {
      double sum = 0.0;
      for (int64_t row = rows * slice / slices; row < rows * (slice + 1) / slices; ++row) {
        const float* from = x + row * row_stride;
        for (int64_t byte = 0; byte < channels / 8; byte += kBytes) {
          const int64_t bytes = channels / 8 - byte < kBytes ? channels / 8 - byte : kBytes;
          const int64_t at = row * (channels / 8) + byte;
          quantize(reinterpret_cast<const uint32_t*>(from + 8 * byte),
                   reinterpret_cast<uint32_t*>(y + 8 * at), packed + at, bytes);
          sum += loops.sum(from + 8 * byte, 8 * bytes);
        }
      }
      sums[slice] = sum;
    }
  });
  return BDK_OK;
}

int bdk_lfq_quantize_commitment_backward_cpu(const float* grad, int64_t grad_stride, const float* x,
                                             int64_t x_stride, float factor, float* grad_x,
                                             int64_t rows, int64_t channels, int threads) {
  using namespace bdk;
  if (rows < 0 || channels <= 0 || threads < 1) return BDK_BAD_SIZE;
  const LfqCommitmentLoops& loops = choose_commitment();
  prefer_large_pages(grad_x, rows * channels * 4);
  parallel_for(rows, 8 * kGrainBytes / channels + 1, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      loops.backward(grad + row * grad_stride, x + row * x_stride, factor, grad_x + row * channels,
                     channels);
    }
  });
  return BDK_OK;
}
