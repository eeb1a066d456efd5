// csrc/cuda/common/mma.cuh in plain C++, by the PTX manual: the fragment layouts are written down a
// second time, by element instead of by word.
#pragma once

#include <array>
#include <deque>
#include <map>

#include "card.h"
#include "half.h"

namespace bdk {

template <class T>
uint32_t pack_pair(float low, float high) {
  return narrow(low, T{}) | uint32_t{narrow(high, T{})} << 16;
}

template <class T>
uint32_t multiply_pairs(uint32_t a, uint32_t b) {
  const auto at = [](uint32_t pair, int i) {
    return widen(static_cast<uint16_t>(pair >> 16 * i), T{});
  };
  return pack_pair<T>(at(a, 0) * at(b, 0), at(a, 1) * at(b, 1));
}

template <class T>
void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  using Words = std::array<uint32_t, 6>;
  const auto sums = emulated::exchange(
      Words{a[0], a[1], a[2], a[3], b0, b1}, [&](const std::array<Words, 32>& given) {
        const auto half = [](uint32_t word, int i) {
          return widen(static_cast<uint16_t>(word >> 16 * i), T{});
        };
        const auto at_a = [&](int row, int k) {
          return half(given[row % 8 * 4 + k % 8 / 2][k / 8 * 2 + row / 8], k % 2);
        };
        const auto at_b = [&](int k, int column) {
          return half(given[column * 4 + k % 8 / 2][4 + k / 8], k % 2);
        };
        std::array<float, 4> sums;
        for (int i = 0; i < 4; ++i) {
          const int row = emulated::lane() / 4 + i / 2 * 8;
          const int column = emulated::lane() % 4 * 2 + i % 2;
          sums[i] = c[i];
          for (int k = 0; k < 16; ++k) sums[i] += at_a(row, k) * at_b(k, column);
        }
        return sums;
      });
  for (int i = 0; i < 4; ++i) c[i] = sums[i];
}

template <bool kTransposed>
void load_matrices(uint32_t (&words)[4], const void* shared) {
  const auto loaded = emulated::exchange(shared, [](const auto& rows) {
    std::array<uint32_t, 4> words;
    for (int m = 0; m < 4; ++m) {
      const auto at = [&](int row, int column) {
        return uint32_t{static_cast<const uint16_t*>(rows[8 * m + row])[column]};
      };
      const int i = emulated::lane() / 4, j = emulated::lane() % 4 * 2;
      words[m] = kTransposed ? at(j, i) | at(j + 1, i) << 16 : at(i, j) | at(i, j + 1) << 16;
    }
    return words;
  });
  for (int m = 0; m < 4; ++m) words[m] = loaded[m];
}

struct Copy {
  void* to;
  const void* from;
  bool inside;
};
struct Copies {
  std::vector<Copy> uncommitted;
  std::deque<std::vector<Copy>> committed;
};
inline Copies& copies() {  // of the thread that runs
  static std::map<int, Copies> by_thread;
  return by_thread[emulated::machine.running];
}

// The destination of a copy is NaN until the thread waits for it: reading too early shows, and so
// does overwriting memory that another warp still reads.
inline void copy_async(void* shared, const void* global, bool inside) {
  memset(shared, 0xFF, 16);
  copies().uncommitted.push_back({shared, global, inside});
}

inline void commit_copies() {
  copies().committed.push_back(std::move(copies().uncommitted));
  copies().uncommitted.clear();
}

template <int kPending>
void wait_for_copies() {
  auto& groups = copies().committed;
  while (static_cast<int>(groups.size()) > kPending) {
    for (const Copy& copy : groups.front()) {
      if (copy.inside) {
        memcpy(copy.to, copy.from, 16);
      } else {
        memset(copy.to, 0, 16);
      }
    }
    groups.pop_front();
  }
}

inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0, x, 1));
  return fmaxf(x, __shfl_xor_sync(0, x, 2));
}

inline float quad_sum(float x) {
  x += __shfl_xor_sync(0, x, 1);
  return x + __shfl_xor_sync(0, x, 2);
}

}  // namespace bdk
