// Rows of 16-bit values that the blocks of a grid exchange while they run, without a barrier of the
// grid: every word of 8 values is its own flag. A word that is not there yet is all ones. A result
// never is: a conversion to 16 bits gives 0x7FFF for NaN.
//
// Rows are written once a stage, into a ring of kRingStages. The block that writes a word in stage
// s wipes it in stage s - kWipeAhead:
// * All have read what the word held, which is of stage s - 8. A block reads in one of two stages
// at
//   least, so it is in stage s - 4 when all rows of s - 7 are there, and blocks wrote these after
//   they had read those of s - 8. This takes it that every block that reads in a stage also writes
//   in it.
// * Who reads in stage s + 1 finds the word wiped: the fence stands between the wipe and the words
//   that the block writes in stage s - 4, from which all rows of s - 1 and s - 2 follow.
#pragma once

#include <stdint.h>

#include "cuda/common/machine_sm90.cuh"

namespace bdk {

constexpr int kRingStages = 8;
constexpr int kWipeAhead = 4;
constexpr uint32_t kNotThere = 0xFFFFFFFFu;

// Four bytes of a word arrive at a time.
__device__ inline bool is_there(const uint4& word) {
  return word.x != kNotThere && word.y != kNotThere && word.z != kNotThere && word.w != kNotThere;
}

class Exchange {
 public:
  // words: [kRingStages, rows, row_words], all ones before the launch.
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
    store_relaxed(address(stage_ + kWipeAhead, row, word),
                  make_uint4(kNotThere, kNotThere, kNotThere, kNotThere));
  }
  __device__ void fence() const { fence_gpu(); }

  __device__ void next_stage() { ++stage_; }

  // Whether this thread waited in vain.
  __device__ bool gave_up() const { return gave_up_; }

 private:
  __device__ uint4* address(int stage, int row, int word) const {
    return words_ + (stage % kRingStages * rows_ + row) * row_words_ + word;
  }

  uint4* words_;
  int rows_, row_words_, max_polls_;
  int stage_ = 0;
  bool gave_up_ = false;
};

}  // namespace bdk
