// Rows of any dtype as float32, for loops that handle float32 only.
#pragma once

#include "bitdance_kernels.h"
#include "common/dtype.h"
#include "cpu/common/halves.h"

namespace bdk {

const Halves& choose_halves();

// Channels of a row that elementwise loops take at a time, so that the buffers of halves stay in
// the first-level cache.
constexpr int64_t kRowTile = 1024;
// Maximum channels of a row of halves that is needed as a whole.
constexpr int64_t kMaxHalves = 8192;

// float32 rows are used in place; halves are converted through a buffer of the caller.
class WideRows {
 public:
  explicit WideRows(bdk_rows rows)
      : rows_(rows),
        loops_(rows.dtype == kFloat16 ? choose_halves().float16 : choose_halves().bfloat16) {}

  bool wide() const { return rows_.dtype == kFloat32; }
  bool given() const { return rows_.data != nullptr; }

  // `count` values of row r from channel c on.
  const float* read(int64_t r, int64_t c, int64_t count, float* buffer) const {
    expect(r + 1, c);
    if (wide()) return at<float>(r, c);
    loops_.widen(at<uint16_t>(r, c), buffer, count);
    return buffer;
  }

  // Row r, if it is one of halves.
  uint16_t* halves(int64_t r) const {
    expect(r + 1, 0);
    return at<uint16_t>(r, 0);
  }

  // Where to write such values; `put` then stores them.
  float* place(int64_t r, int64_t c, float* buffer) const {
    return wide() ? at<float>(r, c) : buffer;
  }
  void put(int64_t r, int64_t c, int64_t count, const float* buffer) const {
    if (!wide()) loops_.narrow(buffer, at<uint16_t>(r, c), count);
  }

 private:
  int64_t offset(int64_t r, int64_t c) const {
    return (rows_.repeat == 1 ? r : r / rows_.repeat) * rows_.stride + c;
  }

  template <class T>
  T* at(int64_t r, int64_t c) const {
    return static_cast<T*>(rows_.data) + offset(r, c);
  }

  // Prefetches the start of the next row: rows of a chunk of a wide tensor lie on different pages,
  // which hardware prefetchers do not cross. On an EPYC this saves gated_residual a seventh of its
  // time on such chunks. The next row need not exist: a prefetch of any address is harmless.
  void expect(int64_t r, int64_t c) const {
    const int64_t bytes = offset(r, c) * (wide() ? 4 : 2);
    const uintptr_t next = reinterpret_cast<uintptr_t>(rows_.data) + static_cast<uintptr_t>(bytes);
    __builtin_prefetch(reinterpret_cast<const void*>(next));
    __builtin_prefetch(reinterpret_cast<const void*>(next + 64));
  }

  bdk_rows rows_;
  HalfLoops loops_;
};

template <class... Rows>
bool are_dtypes(const Rows&... rows) {
  return (is_dtype(rows.dtype) && ...);
}

template <class... Rows>
bool all_wide(const Rows&... rows) {
  return ((rows.dtype == kFloat32) && ...);
}

// Whether all are of one dtype, float16 or bfloat16.
template <class... Rows>
bool all_halves(const bdk_rows& first, const Rows&... rows) {
  return first.dtype != kFloat32 && ((rows.dtype == first.dtype) && ...);
}

// for_tiles(begin, end, channels, use): use(row, first channel, channels of the tile).
template <class Use>
void for_tiles(int64_t begin, int64_t end, int64_t channels, const Use& use) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t c = 0; c < channels; c += kRowTile) {
      use(r, c, channels - c < kRowTile ? channels - c : kRowTile);
    }
  }
}

}  // namespace bdk
