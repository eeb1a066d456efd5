// noise: the words and normals of common/philox.h, for whole rows.
#include "bitdance_kernels.h"
#include "common/philox.h"
#include "cpu/common/parallel.h"

namespace bdk {
namespace {

// Blocks of four normals a thread must have to be worth starting: about 40 us.
constexpr int64_t kGrainBlocks = 512;

void noise_range(const int64_t* keys, int64_t elements, uint32_t step, float* normals,
                 uint32_t* words, int64_t begin, int64_t end) {
  const int64_t row_blocks = (elements + 3) / 4;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = i / row_blocks;
    const int64_t block = i % row_blocks;
    const PhiloxWords drawn =
        noise_words(noise_key(keys + row * 3), static_cast<uint32_t>(block), step);
    float four[4];
    noise_block(drawn, four);
    const int64_t first = row * elements + block * 4;
    const int64_t rest = elements - block * 4;
    for (int64_t k = 0; k < 4 && k < rest; ++k) {
      normals[first + k] = four[k];
      if (words != nullptr) words[first + k] = drawn.word[k];
    }
  }
}

}  // namespace
}  // namespace bdk

int bdk_noise_cpu(const int64_t* keys, int64_t rows, int64_t elements, const int64_t* step,
                  float* normals, uint32_t* words_or_null, int threads) {
  using namespace bdk;
  constexpr int64_t kMaxElements = int64_t{1} << 34;  // 32 bits count blocks of four
  if (rows < 0 || elements < 0 || elements > kMaxElements || threads < 1) return BDK_BAD_SIZE;
  const uint32_t at = static_cast<uint32_t>(*step);
  parallel_for(rows * ((elements + 3) / 4), kGrainBlocks, 1, threads,
               [&](int64_t begin, int64_t end) {
                 noise_range(keys, elements, at, normals, words_or_null, begin, end);
               });
  return BDK_OK;
}
