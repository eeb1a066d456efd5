// lfq_entropy: entries, choice of the instruction set.
#include "cpu/lfq_entropy/lfq_entropy.h"

#include "bitdance_kernels.h"
#include "cpu/common/isa.h"
#include "cpu/common/parallel.h"
#include "cpu/common/subnormals.h"

namespace bdk {
namespace {

constexpr LfqEntropyLoops kScalarLoops = {lfq_entropy_forward, lfq_entropy_backward};

const LfqEntropyLoops& choose() {
#ifdef BDK_X86
  if (active_isa() == kAvx512) return kLfqEntropyAvx512;
  if (active_isa() == kAvx2) return kLfqEntropyAvx2;
#endif
  return kScalarLoops;
}

bool in_range(int64_t tokens, int64_t groups, int64_t bits, int64_t slices, int threads) {
  return tokens >= 0 && groups >= 1 && bits >= 1 && bits <= kEntropyMaxBits && slices >= 1 &&
         threads >= 1;
}

// Calls body(slice, first token, end) for every slice.
template <class Body>
void for_slices(int64_t tokens, int64_t slices, int threads, const Body& body) {
  parallel_for(slices, 1, 1, threads, [&](int64_t first, int64_t last) {
    const FlushSubnormals flush;
    for (int64_t slice = first; slice < last; ++slice) {
      body(slice, tokens * slice / slices, tokens * (slice + 1) / slices);
    }
  });
}

}  // namespace
}  // namespace bdk

int bdk_lfq_entropy_cpu(const float* x, int64_t x_stride, int64_t tokens, int64_t groups,
                        int64_t bits, float scale, int per_group, float* sums, double* entropy,
                        int64_t slices, int threads) {
  using namespace bdk;
  if (!in_range(tokens, groups, bits, slices, threads)) return BDK_BAD_SIZE;
  const LfqEntropyLoops& loops = choose();
  const EntropyCodes codes{x, x_stride, groups, static_cast<int>(bits), scale, per_group != 0};
  const EntropyWidths w = entropy_widths(codes.bits);
  const int64_t table = (codes.per_group ? groups : 1) * w.high * w.low;
  for_slices(tokens, slices, threads, [&](int64_t slice, int64_t begin, int64_t end) {
    entropy[slice] = loops.forward(codes, begin, end, sums + slice * table);
  });
  return BDK_OK;
}

int bdk_lfq_entropy_backward_cpu(const float* x, int64_t x_stride, int64_t tokens, int64_t groups,
                                 int64_t bits, float scale, int per_group, const float* grad_p,
                                 const float* grad_p_transposed, float sample_share, float* grad_x,
                                 int threads) {
  using namespace bdk;
  if (!in_range(tokens, groups, bits, 1, threads)) return BDK_BAD_SIZE;
  const LfqEntropyLoops& loops = choose();
  const EntropyCodes codes{x, x_stride, groups, static_cast<int>(bits), scale, per_group != 0};
  for_slices(tokens, threads, threads, [&](int64_t, int64_t begin, int64_t end) {
    loops.backward(codes, begin, end, grad_p, grad_p_transposed, sample_share, grad_x);
  });
  return BDK_OK;
}
