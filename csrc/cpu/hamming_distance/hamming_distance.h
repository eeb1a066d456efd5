// The inner loops of hamming_distance and nearest_codes, one set per instruction set.
//
// For many queries the codes to search are in blocks of 64, byte by byte: block[64 * byte + code].
// So a vector holds the same byte of many codes, sums never cross its lanes, and counts stay one
// byte wide until they are widened once per code. Few queries are compared with codes as they lie,
// word by word: making blocks would take longer.
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace bdk {

constexpr int kBlock = 64;
constexpr int kGroup = 4;                // queries that share each load of codes
constexpr int64_t kMaxNeighbours = 128;  // length of the sorted list of neighbours
constexpr int kIndexBits = 38;  // bits of the index in a neighbour's key, below the distance

// Distances of some queries (adjacent rows of a) to `count` codes in blocks; a row of `out` every
// `out_stride`.
using DistanceRows = void (*)(const uint8_t* a, const uint8_t* blocks, int64_t bytes, int64_t count,
                              int32_t* out, int64_t out_stride);

// Distances of a query to `count` codes as they lie, one every `stride` bytes.
using DistancesAsTheyLie = void (*)(const uint8_t* a, const uint8_t* codes, int64_t stride,
                                    int64_t bytes, int64_t count, int32_t* out);

// The `k` smallest (distance, index) of each query, ascending.
using NearestRows = void (*)(const uint8_t* a, const uint8_t* blocks, int64_t bytes, int64_t count,
                             int64_t k, int64_t* index, int32_t* distance);

// The same for at most kGroup queries and codes as they lie.
using NearestAsTheyLie = void (*)(const uint8_t* a, int64_t queries, const uint8_t* codes,
                                  int64_t stride, int64_t bytes, int64_t count, int64_t k,
                                  int64_t* index, int32_t* distance);

struct HammingRows {  // of one query, and of kGroup
  DistanceRows distance[2];
  NearestRows nearest[2];
  DistancesAsTheyLie as_they_lie;
  NearestAsTheyLie nearest_as_they_lie;
  int (*few_queries)(int64_t bytes);
  void (*make_blocks)(const uint8_t* codes, int64_t stride, int64_t bytes, int64_t count,
                      uint8_t* blocks);
};

extern const HammingRows kHammingAvx2, kHammingAvx512, kHammingBitalg;

// Number of differing bits of a query and each code of a block, over at most kMaxBytes bytes, as a
// sum of two parts that fit into bytes.
struct Counts {
  alignas(64) uint8_t part[2][kBlock];
};
constexpr int64_t kMaxBytes = 62;

// Number of differing bits of two half bytes, for each pair; twice, for the two lanes of an AVX2
// lookup.
struct DifferentBits {
  alignas(32) uint8_t of[32];
};
struct AllDifferentBits {
  DifferentBits half[16];

  constexpr AllDifferentBits() : half() {
    for (int v = 0; v < 16; ++v) {
      for (int n = 0; n < 32; ++n) {
        const int x = v ^ (n % 16);
        half[v].of[n] = static_cast<uint8_t>((x & 1) + (x >> 1 & 1) + (x >> 2 & 1) + (x >> 3));
      }
    }
  }
};
static constexpr AllDifferentBits kDifferentBits;

// The tables of the low and the high halves of some bytes of each query, in order of use, so that a
// lookup needs no address computation.
template <int kQueries>
struct DifferentBitsOfQueries {
  DifferentBits half[2][kMaxBytes][kQueries];

  void prepare(const uint8_t* a, int64_t stride, int64_t bytes) {
    for (int q = 0; q < kQueries; ++q, a += stride) {
      for (int64_t b = 0; b < bytes; ++b) {
        half[0][b][q] = kDifferentBits.half[a[b] & 15];
        half[1][b][q] = kDifferentBits.half[a[b] >> 4];
      }
    }
  }
};

// The queries themselves, for an instruction set that needs no tables.
template <int kQueries>
struct BytesOfQueries {
  const uint8_t* a;
  int64_t stride;

  void prepare(const uint8_t* from, int64_t distance, int64_t) {
    a = from;
    stride = distance;
  }
};

// Bits::Queries<kQueries>::prepare(a, stride, bytes) prepares some bytes of the queries;
// Bits::count(queries, block, bytes, counts) compares them with a block.
template <class Bits, int kQueries>
class Comparison {
 public:
  Comparison(const uint8_t* a, int64_t bytes) : a_(a), bytes_(bytes) {
    const int64_t parts = (bytes + kMaxBytes - 1) / kMaxBytes;
    part_ = (bytes + parts - 1) / parts;
  }

  // Distances to the codes of adjacent blocks. Many blocks at a time, since long codes are compared
  // part by part, and each part of the queries is prepared once.
  void distances(const uint8_t* blocks, int64_t number, int32_t* out, int64_t out_stride) {
    for (int64_t first = 0; first < bytes_; first += part_) {
      const int64_t some = bytes_ - first < part_ ? bytes_ - first : part_;
      if (prepared_ != first) queries_.prepare(a_ + first, bytes_, some);
      prepared_ = first;
      for (int64_t n = 0; n < number; ++n) {
        Counts counts[kQueries];
        Bits::count(queries_, blocks + kBlock * (n * bytes_ + first), some, counts);
        for (int q = 0; q < kQueries; ++q) {
          int32_t* to = out + q * out_stride + kBlock * n;
          if (first == 0) {
            put<false>(counts[q], to);
          } else {
            put<true>(counts[q], to);
          }
        }
      }
    }
  }

 private:
  template <bool kMore>
  static void put(const Counts& counts, int32_t* to) {
    for (int i = 0; i < kBlock; ++i) {
      const int32_t sum = static_cast<uint16_t>(counts.part[0][i] + counts.part[1][i]);
      to[i] = kMore ? to[i] + sum : sum;
    }
  }

  const uint8_t* a_;
  int64_t bytes_, part_;
  int64_t prepared_ = -1;
  typename Bits::template Queries<kQueries> queries_;
};

template <class Bits, int kQueries>
static inline void distance_rows(const uint8_t* a, const uint8_t* blocks, int64_t bytes,
                                 int64_t count, int32_t* out, int64_t out_stride) {
  Comparison<Bits, kQueries> comparison(a, bytes);
  const int64_t whole = count / kBlock;
  comparison.distances(blocks, whole, out, out_stride);
  const int64_t rest = count - whole * kBlock;
  if (rest == 0) return;
  int32_t last[kQueries][kBlock];
  comparison.distances(blocks + whole * kBlock * bytes, 1, last[0], kBlock);
  for (int q = 0; q < kQueries; ++q) {
    for (int64_t i = 0; i < rest; ++i) out[q * out_stride + whole * kBlock + i] = last[q][i];
  }
}

// Byte j of word i to byte i of word j.
static inline void transpose_bytes(uint64_t (&row)[8]) {
  const auto exchange = [&](int distance, uint64_t mask) {
    for (int i = 0; i < 8; ++i) {
      if (i & distance) continue;
      const uint64_t low = row[i], high = row[i + distance];
      row[i] = (low & mask) | (high & mask) << 8 * distance;
      row[i + distance] = (low >> 8 * distance & mask) | (high & ~mask);
    }
  };
  exchange(1, 0x00FF00FF00FF00FFu);
  exchange(2, 0x0000FFFF0000FFFFu);
  exchange(4, 0x00000000FFFFFFFFu);
}

// Codes as they lie in blocks of kBlock; zeros beyond the last.
static inline void make_blocks(const uint8_t* codes, int64_t stride, int64_t bytes, int64_t count,
                               uint8_t* blocks) {
  for (int64_t first = 0; first < count; first += kBlock, blocks += kBlock * bytes) {
    const int64_t some = count - first < kBlock ? count - first : kBlock;
    const uint8_t* from = codes + first * stride;
    if (some < kBlock) memset(blocks, 0, kBlock * bytes);
    const int64_t whole_bytes = bytes / 8 * 8, whole_codes = some / 8 * 8;
    for (int64_t b = 0; b < whole_bytes; b += 8) {
      for (int64_t c = 0; c < whole_codes; c += 8) {
        uint64_t row[8];
        for (int i = 0; i < 8; ++i) memcpy(&row[i], from + (c + i) * stride + b, 8);
        transpose_bytes(row);
        for (int i = 0; i < 8; ++i) memcpy(blocks + kBlock * (b + i) + c, &row[i], 8);
      }
    }
    for (int64_t c = 0; c < some; ++c) {
      for (int64_t b = c < whole_codes ? whole_bytes : 0; b < bytes; ++b) {
        blocks[kBlock * b + c] = from[c * stride + b];
      }
    }
  }
}

template <int kWords>  // of 8 bytes each
static inline void distances_of_words(const uint8_t* a, const uint8_t* codes, int64_t stride,
                                      int64_t count, int32_t* out) {
  uint64_t query[kWords];  // in registers, whatever `out` may overlap
  memcpy(query, a, sizeof query);
#pragma GCC unroll 4
  for (int64_t m = 0; m < count; ++m) {
    uint64_t code[kWords];
    memcpy(code, codes + m * stride, sizeof code);
    int sum = 0;
    for (int w = 0; w < kWords; ++w) sum += __builtin_popcountll(query[w] ^ code[w]);
    out[m] = sum;
  }
}

#ifdef __AVX2__
// Codes of 32 bytes: set bits of half bytes are looked up, and their sums are those of four codes
// in a vector. GCC makes vectors of the loop over words too, but counts out of their lanes, which
// takes twice the time.
static inline void distances_of_vectors(const uint8_t* a, const uint8_t* codes, int64_t stride,
                                        int64_t count, int32_t* out) {
  const auto load = [](const uint8_t* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  };
  const __m256i query = load(a), low = _mm256_set1_epi8(15);
  const __m256i set_bits =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  // In each 64-bit lane the bits of 8 bytes.
  const auto count_bits = [&](const uint8_t* code) {
    const __m256i different = _mm256_xor_si256(query, load(code));
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(different, 4), low);
    const __m256i bits =
        _mm256_add_epi8(_mm256_shuffle_epi8(set_bits, _mm256_and_si256(different, low)),
                        _mm256_shuffle_epi8(set_bits, high));
    return _mm256_sad_epu8(bits, _mm256_setzero_si256());
  };
  // Two codes side by side in the halves of 64-bit lanes.
  const auto count_two = [&](const uint8_t* code) {
    return _mm256_or_si256(count_bits(code), _mm256_slli_epi64(count_bits(code + stride), 32));
  };
  int64_t m = 0;
  for (; m + 4 <= count; m += 4, codes += 4 * stride) {
    const __m256i first = count_two(codes), second = count_two(codes + 2 * stride);
    const __m256i sum = _mm256_add_epi32(_mm256_unpacklo_epi64(first, second),
                                         _mm256_unpackhi_epi64(first, second));
    const __m128i four =
        _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + m), four);
  }
  distances_of_words<4>(a, codes, stride, count - m, out + m);
}
#endif

// The last bytes of a code, fewer than a word, are read as a whole one, except where it would end
// beyond the last code.
static inline void distances_of_bytes(const uint8_t* a, const uint8_t* codes, int64_t stride,
                                      int64_t bytes, int64_t count, int32_t* out) {
  const int64_t words = bytes / 8, rest = bytes % 8;
  const uint8_t* end = codes + (count - 1) * stride + bytes;
  const uint64_t mask = (uint64_t{1} << 8 * rest) - 1;
  uint64_t last = 0;
  memcpy(&last, a + 8 * words, rest);
  for (int64_t m = 0; m < count; ++m, codes += stride) {
    uint64_t x, y = 0;
    if (end - codes >= 8 * words + 8) {
      memcpy(&y, codes + 8 * words, 8);
    } else {
      memcpy(&y, codes + 8 * words, rest);
    }
    int sum = __builtin_popcountll(last ^ (y & mask));
    for (int64_t w = 0; w < words; ++w) {
      memcpy(&x, a + 8 * w, 8);
      memcpy(&y, codes + 8 * w, 8);
      sum += __builtin_popcountll(x ^ y);
    }
    out[m] = sum;
  }
}

static inline void distances_as_they_lie(const uint8_t* a, const uint8_t* codes, int64_t stride,
                                         int64_t bytes, int64_t count, int32_t* out) {
  if (bytes == 8) return distances_of_words<1>(a, codes, stride, count, out);
  if (bytes == 16) return distances_of_words<2>(a, codes, stride, count, out);
#ifdef __AVX2__
  if (bytes == 32) return distances_of_vectors(a, codes, stride, count, out);
#else
  if (bytes == 32) return distances_of_words<4>(a, codes, stride, count, out);
#endif
  distances_of_bytes(a, codes, stride, bytes, count, out);
}

// A mask of the values of a block that are below the limit.
static inline uint64_t below(const int32_t* values, int32_t limit) {
  uint64_t mask = 0;
#if defined(__AVX512F__)
  const __m512i limits = _mm512_set1_epi32(limit);
  for (int i = 0; i < kBlock; i += 16) {
    const uint64_t some = _mm512_cmplt_epi32_mask(_mm512_loadu_si512(values + i), limits);
    mask |= some << i;
  }
#elif defined(__AVX2__)
  const __m256i limits = _mm256_set1_epi32(limit);
  for (int i = 0; i < kBlock; i += 8) {
    const __m256i eight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i));
    const __m256 under = _mm256_castsi256_ps(_mm256_cmpgt_epi32(limits, eight));
    mask |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_ps(under))) << i;
  }
#else
  for (int i = 0; i < kBlock; ++i) mask |= static_cast<uint64_t>(values[i] < limit) << i;
#endif
  return mask;
}

// The nearest codes of a query so far, as ascending keys: the distance, then the index.
struct Neighbours {
  int64_t lists[2][kMaxNeighbours + 1];  // one is read while the other is written
  int current;
  int32_t limit;  // a code must be nearer than this; an equal one has a larger index

  void clear(int64_t k) {
    lists[0][0] = lists[1][0] = INT64_MIN;  // sentinel before the first
    for (int64_t i = 1; i <= k; ++i) lists[0][i] = INT64_MAX;
    current = 0;
    limit = INT32_MAX;
  }

  // Branchless insertion: every place takes the median of its key, the key before it and the new
  // key.
  void insert(int64_t key, int64_t k) {
    const int64_t* from = lists[current];
    int64_t* to = lists[current ^ 1];
#pragma omp simd
    for (int64_t i = 1; i <= k; ++i) {
      const int64_t kept = from[i] < key ? from[i] : key;
      to[i] = from[i - 1] > kept ? from[i - 1] : kept;
    }
    current ^= 1;
    limit = static_cast<int32_t>(to[k] >> kIndexBits);
  }

  // Those among `count` codes, the first of which has the index `first`.
  void take(const int32_t* distances, int64_t first, int64_t count, int64_t k) {
    int32_t last[kBlock];
    for (int64_t m = 0; m < count; m += kBlock) {
      const int32_t* values = distances + m;
      if (count - m < kBlock) {
        for (int i = 0; i < kBlock; ++i) last[i] = i < count - m ? values[i] : INT32_MAX;
        values = last;
      }
      for (uint64_t nearer = below(values, limit); nearer != 0; nearer &= nearer - 1) {
        const int at = __builtin_ctzll(nearer);
        insert((int64_t{values[at]} << kIndexBits) + first + m + at, k);
      }
    }
  }

  void put(int64_t k, int64_t* index, int32_t* distance) const {
    const int64_t* keys = lists[current] + 1;
    for (int64_t i = 0; i < k; ++i) {
      index[i] = keys[i] & ((int64_t{1} << kIndexBits) - 1);
      distance[i] = static_cast<int32_t>(keys[i] >> kIndexBits);
    }
  }
};

template <class Bits, int kQueries>
static inline void nearest_rows(const uint8_t* a, const uint8_t* blocks, int64_t bytes,
                                int64_t count, int64_t k, int64_t* index, int32_t* distance) {
  constexpr int64_t kTile = 8 * kBlock;
  Comparison<Bits, kQueries> comparison(a, bytes);
  Neighbours nearest[kQueries];
  for (int q = 0; q < kQueries; ++q) nearest[q].clear(k);
  for (int64_t tile = 0; tile < count; tile += kTile, blocks += kTile * bytes) {
    alignas(64) int32_t found[kQueries][kTile];
    const int64_t codes = count - tile < kTile ? count - tile : kTile;
    comparison.distances(blocks, (codes + kBlock - 1) / kBlock, found[0], kTile);
    for (int q = 0; q < kQueries; ++q) nearest[q].take(found[q], tile, codes, k);
  }
  for (int q = 0; q < kQueries; ++q) nearest[q].put(k, index + q * k, distance + q * k);
}

template <DistancesAsTheyLie distances>
static inline void nearest_as_they_lie(const uint8_t* a, int64_t queries, const uint8_t* codes,
                                       int64_t stride, int64_t bytes, int64_t count, int64_t k,
                                       int64_t* index, int32_t* distance) {
  constexpr int64_t kTile = 16 * kBlock;
  Neighbours nearest[kGroup];
  for (int64_t q = 0; q < queries; ++q) nearest[q].clear(k);
  for (int64_t first = 0; first < count; first += kTile) {
    alignas(64) int32_t found[kTile];
    const int64_t some = count - first < kTile ? count - first : kTile;
    for (int64_t q = 0; q < queries; ++q) {
      distances(a + q * bytes, codes + first * stride, stride, bytes, some, found);
      nearest[q].take(found, first, some, k);
    }
  }
  for (int64_t q = 0; q < queries; ++q) nearest[q].put(k, index + q * k, distance + q * k);
}

static inline int few_queries(int64_t bytes) { return bytes % 8 == 0 ? 8 : 4; }

template <class Bits, DistancesAsTheyLie distances = distances_as_they_lie,
          int (*few)(int64_t) = few_queries>
constexpr HammingRows hamming_rows() {
  return {{distance_rows<Bits, 1>, distance_rows<Bits, kGroup>},
          {nearest_rows<Bits, 1>, nearest_rows<Bits, kGroup>},
          distances,
          nearest_as_they_lie<distances>,
          few,
          make_blocks};
}

}  // namespace bdk
