// hamming_distance on processors with a popcount for bytes and words (AVX-512 BITALG, VPOPCNTDQ).
#include <immintrin.h>

#include "cpu/hamming_distance/hamming_distance.h"

namespace bdk {
namespace {

struct Bits {
  template <int kQueries>
  using Queries = BytesOfQueries<kQueries>;

  template <int kQueries>
  static void count(const Queries<kQueries>& queries, const uint8_t* block, int64_t bytes,
                    Counts* counts) {
    for (int part = 0; part < 2; ++part) {  // half of the bytes each
      const int64_t end = part == 0 ? bytes / 2 : bytes;
      __m512i sum[kQueries];
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) sum[q] = _mm512_setzero_si512();
      for (int64_t b = part == 0 ? 0 : bytes / 2; b < end; ++b) {
        const __m512i codes = _mm512_loadu_si512(block + kBlock * b);
#pragma GCC unroll 4
        for (int q = 0; q < kQueries; ++q) {
          const __m512i query =
              _mm512_set1_epi8(static_cast<char>(queries.a[q * queries.stride + b]));
          sum[q] = _mm512_add_epi8(sum[q], _mm512_popcnt_epi8(_mm512_xor_si512(query, codes)));
        }
      }
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; ++q) _mm512_storeu_si512(counts[q].part[part], sum[q]);
    }
  }
};

// Numbers of at most 16 bits as the four fields of each word.
__m512i in_fields(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i low = _mm512_or_si512(a, _mm512_slli_epi64(b, 16));
  return _mm512_or_si512(low, _mm512_slli_epi64(_mm512_or_si512(c, _mm512_slli_epi64(d, 16)), 32));
}

// Sums of a code's words of 64 bits, kept apart in four fields of 16 bits; a code has `kBytes`
// bytes of the vector, and each of its words gets the sum.
template <int kBytes>
__m512i sums_of_codes(__m512i fields) {
  if (kBytes >= 16) {
    fields = _mm512_add_epi16(fields, _mm512_shuffle_epi32(fields, _MM_PERM_BADC));
  }
  if (kBytes >= 32) fields = _mm512_add_epi16(fields, _mm512_permutex_epi64(fields, 0x4E));
  if (kBytes >= 64) fields = _mm512_add_epi16(fields, _mm512_shuffle_i64x2(fields, fields, 0x4E));
  return fields;
}

// Writes the first 4 * 64 / kBytes of 16-bit numbers.
template <int kBytes>
void put(int32_t* out, __m512i numbers) {
  const __m256i low = _mm512_castsi512_si256(numbers);
  if (kBytes == 64) {
    const __m128i four = _mm_cvtepu16_epi32(_mm512_castsi512_si128(numbers));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), four);
  } else if (kBytes == 32) {
    const __m256i eight = _mm256_cvtepu16_epi32(_mm512_castsi512_si128(numbers));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), eight);
  } else {
    _mm512_storeu_si512(out, _mm512_cvtepu16_epi32(low));
    if (kBytes == 8) {
      const __m256i high = _mm512_extracti64x4_epi64(numbers, 1);
      _mm512_storeu_si512(out + 16, _mm512_cvtepu16_epi32(high));
    }
  }
}

// Calls use(first) for every multiple of `step` codes and returns the number of codes done. Equal
// parts of the codes take turns, since the processor prefetches each part as a stream of its own.
template <class Use>
int64_t in_streams(int64_t count, int64_t step, const Use& use) {
  constexpr int kStreams = 4;
  const int64_t part = count / (kStreams * step) * step;
  for (int64_t m = 0; m < part; m += step) {
#pragma GCC unroll 4
    for (int stream = 0; stream < kStreams; ++stream) use(stream * part + m);
  }
  int64_t m = kStreams * part;
  for (; m + step <= count; m += step) use(m);
  return m;
}

// Codes of 4 bytes without gaps.
int64_t codes_of_4(const uint8_t* a, const uint8_t* codes, int64_t count, int32_t* out) {
  int32_t word;
  memcpy(&word, a, sizeof word);
  const __m512i query = _mm512_set1_epi32(word);
  return in_streams(count, 16, [&](int64_t m) {
    const __m512i code = _mm512_loadu_si512(codes + 4 * m);
    _mm512_storeu_si512(out + m, _mm512_popcnt_epi32(_mm512_xor_si512(code, query)));
  });
}

// Codes of 8 to 32 bytes without gaps: several in a vector, four vectors at a time.
template <int kBytes>
int64_t short_codes(const uint8_t* a, const uint8_t* codes, int64_t count, int32_t* out) {
  constexpr int kCodes = 64 / kBytes;
  alignas(64) uint8_t query_bytes[64];
  alignas(64) uint16_t places[32] = {};
  for (int i = 0; i < kCodes; ++i) memcpy(query_bytes + kBytes * i, a, kBytes);
  for (int i = 0; i < 4 * kCodes; ++i) {
    places[i] = static_cast<uint16_t>(i % kCodes * kBytes / 2 + i / kCodes);
  }
  const __m512i query = _mm512_load_si512(query_bytes), order = _mm512_load_si512(places);
  return in_streams(count, 4 * kCodes, [&](int64_t m) {
    const auto ones = [&](int i) {
      const __m512i code = _mm512_loadu_si512(codes + kBytes * m + 64 * i);
      return _mm512_popcnt_epi64(_mm512_xor_si512(code, query));
    };
    const __m512i sums = sums_of_codes<kBytes>(in_fields(ones(0), ones(1), ones(2), ones(3)));
    put<kBytes>(out + m, _mm512_permutexvar_epi16(order, sums));
  });
}

// Codes of any width below 8 KiB (sums have 16 bits), four at a time.
int64_t long_codes(const uint8_t* a, const uint8_t* codes, int64_t stride, int64_t bytes,
                   int64_t count, int32_t* out) {
  return in_streams(count, 4, [&](int64_t m) {
    __m512i sum[4] = {};
    for (int64_t b = 0; b < bytes; b += 64) {
      const __mmask64 inside = bytes - b < 64 ? (uint64_t{1} << (bytes - b)) - 1 : ~uint64_t{0};
      const __m512i query = _mm512_maskz_loadu_epi8(inside, a + b);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m512i code = _mm512_maskz_loadu_epi8(inside, codes + (m + i) * stride + b);
        const __m512i ones = _mm512_popcnt_epi64(_mm512_xor_si512(code, query));
        sum[i] = _mm512_add_epi64(sum[i], ones);
      }
    }
    put<64>(out + m, sums_of_codes<64>(in_fields(sum[0], sum[1], sum[2], sum[3])));
  });
}

void distances(const uint8_t* a, const uint8_t* codes, int64_t stride, int64_t bytes, int64_t count,
               int32_t* out) {
  int64_t done = 0;
  if (bytes == stride && bytes == 4) {
    done = codes_of_4(a, codes, count, out);
  } else if (bytes == stride && bytes == 8) {
    done = short_codes<8>(a, codes, count, out);
  } else if (bytes == stride && bytes == 16) {
    done = short_codes<16>(a, codes, count, out);
  } else if (bytes == stride && bytes == 32) {
    done = short_codes<32>(a, codes, count, out);
  } else if (bytes >= 32 && bytes < 8192) {  // a code of few words takes less time word by word
    done = long_codes(a, codes, stride, bytes, count, out);
  }
  if (done < count) {
    distances_as_they_lie(a, codes + done * stride, stride, bytes, count - done, out + done);
  }
}

int few_queries_of_vectors(int64_t bytes) {
  const bool in_vectors = bytes == 4 || bytes == 8 || bytes == 16 || bytes >= 32;
  return in_vectors ? 16 : 2;
}

}  // namespace

const HammingRows kHammingBitalg = hamming_rows<Bits, distances, few_queries_of_vectors>();

}  // namespace bdk
