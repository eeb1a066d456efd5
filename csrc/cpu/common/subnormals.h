// Arithmetic without subnormal numbers, for a scope of one thread.
#pragma once

#ifdef BDK_X86
#include <xmmintrin.h>
#endif

namespace bdk {

// Within its scope subnormal results and operands are 0. Intel processors take over a hundred
// cycles for each of them, and products of many small probabilities are nearly all subnormal.
class FlushSubnormals {
 public:
#ifdef BDK_X86
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kFlushToZero | kInputsAreZero); }
  ~FlushSubnormals() { _mm_setcsr(before_); }
#else
  FlushSubnormals() {}
#endif
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

#ifdef BDK_X86
 private:
  static constexpr unsigned kFlushToZero = 0x8000, kInputsAreZero = 0x0040;
  unsigned before_;
#endif
};

}  // namespace bdk
