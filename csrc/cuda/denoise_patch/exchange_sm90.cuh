// Rows of 16-bit values that the blocks of a grid exchange while they run, without a barrier of the
// grid: every word of 8 values is its own flag. A word that is not there yet is all ones. A result
// never is: a conversion to 16 bits gives 0x7FFF for NaN.
//
// Rows are written once a stage, into a ring. The block that writes a word in stage s wipes it
// kAhead stages before. Call a stage full in which every block reads all rows of the stage before
// and writes: of the two stages of an MLP the first product, of the five of a layer with attention
// (qkv, attention, wo, w1, w2) qkv and w1. In the others some blocks do nothing, but what they
// write follows from all rows of the last full stage.
// * All have read what the word held. A block that wipes in stage t has read all rows of t - 3 or
//   later (t - 4 with attention: before w1, if it had no part in attention and wo). Who wrote these
//   had read all of the stage before; so rows of t - 4 (t - 5) are no longer of use, and those of
//   stage t + kAhead - kStages are not later.
// * Who reads in stage s + 1 finds the word wiped. It has read all rows of s - 2 or later (s - 3),
//   which follow from all rows of a full stage not before s - 3 (s - 4). A fence stands between
//   the wipe and what its block wrote there.
#pragma once

#include <stdint.h>

#include "cuda/common/machine_sm90.cuh"

namespace bdk {

// Stages that a ring has.
constexpr int ring_stages(bool attention) { return attention ? 10 : 8; }

constexpr uint32_t kNotThere = 0xFFFFFFFFu;

// Four bytes of a word arrive at a time.
__device__ inline bool is_there(const uint4& word) {
  return word.x != kNotThere && word.y != kNotThere && word.z != kNotThere && word.w != kNotThere;
}

template <bool kAttention>
class Exchange {
 public:
  static constexpr int kStages = ring_stages(kAttention);
  static constexpr int kAhead = kAttention ? 5 : 4;  // the wipes of a stage are for its like

  // words: [kStages, rows, row_words], all ones before the launch.
  __device__ Exchange(uint4* words, int rows, int row_words, int max_polls)
      : words_(words), rows_(rows), row_words_(row_words), max_polls_(max_polls) {}

  // A word of another block's rows of the stage before, if it is there.
  __device__ uint4 look(int row, int word) const {
    return load_relaxed(address(stage_ - 1, row, word));
  }

  // Waits for a word that was not there. It gives up for good after `max_polls` looks.
  __device__ void wait(int row, int word, uint4& seen) {
    const uint4* at = address(stage_ - 1, row, word);
    for (int polls = 0; !is_there(seen) && !gave_up_; ++polls) {
      gave_up_ = polls == max_polls_;
      seen = load_relaxed(at);
    }
  }

  __device__ void write(int row, int word, const uint4& values) const {
    store_relaxed(address(stage_, row, word), values);
  }

  // The same threads call fence() when all are wiped.
  __device__ void wipe(int row, int word) const {
    store_relaxed(address(stage_ + kAhead, row, word),
                  make_uint4(kNotThere, kNotThere, kNotThere, kNotThere));
  }
  __device__ void fence() const { fence_gpu(); }

  __device__ void next_stage() { ++stage_; }

  // Whether this thread waited in vain.
  __device__ bool gave_up() const { return gave_up_; }

 private:
  __device__ uint4* address(int stage, int row, int word) const {
    return words_ + (stage % kStages * rows_ + row) * row_words_ + word;
  }

  uint4* words_;
  int rows_, row_words_, max_polls_;
  int stage_ = 0;
  bool gave_up_ = false;
};

}  // namespace bdk
