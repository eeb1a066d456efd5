// Attention in tiles: FlashAttention-2 (Dao 2023, algorithm 1) for sixteen queries side by side.
//
// A product adds A B to C, where A and C are sixteen rows of 64 bytes and B holds pairs of its rows
// side by side. Scores are the products of keys, as they lie, and of queries, so that a vector of
// scores has one key and all queries. The weights are transposed to multiply pairs of values.
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "cpu/common/bfloat16_tiles.h"

namespace bdk {
namespace {

constexpr int kTile = 16;    // rows of a tile, and values of float32 in a row
constexpr int kDepth = 32;   // values of bfloat16 in a row
constexpr int kBlock = 128;  // keys at a time
constexpr int kBytes = 64;   // of a row

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  TileConfig() {
    for (int i = 0; i < 8; ++i) {
      row_bytes[i] = kBytes;
      rows[i] = kTile;
    }
  }
};

// Sixteen queries and what they have summed up.
struct Queries {
  alignas(64) uint32_t pairs[kTileChannels / 2][kTile];  // of channels
  alignas(64) float sums[kTile][kTileChannels];
  alignas(64) int32_t begin[kTile], end[kTile];
  __m512 top, total;
  int first, last;  // the keys that any of them sees
  bool started;
};

// Some keys, of which those of the last tile are copied unless it is full.
struct Block {
  alignas(64) uint16_t last_keys[kTile][kTileChannels];
  alignas(64) uint32_t values[kBlock / 2][kTileChannels];  // pairs of tokens
  int first, count;
};

// Rows of 32-bit values become columns.
inline void transpose(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // columns c, c + 4, c + 8, c + 12 of four rows
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int c = 0; c < 4; ++c) {
    const __m512i even = _mm512_shuffle_i32x4(r[c], r[c + 4], 0x88);
    const __m512i odd = _mm512_shuffle_i32x4(r[c], r[c + 4], 0xDD);
    const __m512i more_even = _mm512_shuffle_i32x4(r[c + 8], r[c + 12], 0x88);
    const __m512i more_odd = _mm512_shuffle_i32x4(r[c + 8], r[c + 12], 0xDD);
    t[c] = _mm512_shuffle_i32x4(even, more_even, 0x88);
    t[c + 4] = _mm512_shuffle_i32x4(odd, more_odd, 0x88);
    t[c + 8] = _mm512_shuffle_i32x4(even, more_even, 0xDD);
    t[c + 12] = _mm512_shuffle_i32x4(odd, more_odd, 0xDD);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// e^x for x <= 0 as exp_approximate; a NaN stays one.
inline __m512 exp_of(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x);  // the second of the two if one is NaN
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  constexpr float kFactors[] = {1.3981999507e-3f,
                                8.3334519073e-3f,
                                4.1665795894e-2f,
                                1.6666665459e-1f,
                                5.0000001201e-1f,
                                1.0f,
                                1.0f};
  for (const float factor : kFactors) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(factor));
  return _mm512_scalef_ps(p, n);
}

void read(const TileRow* rows, int count, int head_dim, Queries& queries) {
  queries.first = INT32_MAX;
  queries.last = 0;
  for (int i = 0; i < kTile; ++i) {
    queries.begin[i] = i < count ? rows[i].begin : 0;
    queries.end[i] = i < count ? rows[i].end : 0;
    if (queries.begin[i] >= queries.end[i]) continue;
    if (queries.begin[i] < queries.first) queries.first = queries.begin[i];
    if (queries.end[i] > queries.last) queries.last = queries.end[i];
  }
  for (int channel = 0; channel < head_dim; channel += kDepth) {
    __m512i r[kTile];
    for (int i = 0; i < kTile; ++i) {
      r[i] = i < count ? _mm512_loadu_si512(rows[i].q + channel) : _mm512_setzero_si512();
    }
    transpose(r);
    for (int i = 0; i < kTile; ++i) {
      _mm512_store_si512(queries.pairs[channel / 2 + i], r[i]);
    }
  }
  queries.top = _mm512_set1_ps(-INFINITY);
  queries.total = _mm512_setzero_ps();
  queries.started = false;
}

void read(const TileHead& head, Block& block) {
  const int rest = block.count % kTile, D = head.head_dim;
  for (int i = 0; rest != 0 && i < kTile; ++i) {
    const int64_t key = block.first + block.count - rest + i;
    if (i < rest) memcpy(block.last_keys[i], head.k + key * head.k_stride, sizeof(uint16_t) * D);
    if (i >= rest) memset(block.last_keys[i], 0, sizeof(uint16_t) * D);
  }
  alignas(64) uint16_t low[32], high[32];  // where the first and second half of the pairs come from
  for (int i = 0; i < 32; ++i) {
    low[i] = static_cast<uint16_t>(i / 2 + i % 2 * 32);
    high[i] = static_cast<uint16_t>(low[i] + 16);
  }
  const __m512i from_low = _mm512_load_si512(low), from_high = _mm512_load_si512(high);
  const int padded = (block.count + kDepth - 1) / kDepth * kDepth;
  for (int i = 0; i < padded; i += 2) {
    const uint16_t* token = head.v + (block.first + i) * head.v_stride;
    const __mmask32 has_one = i < block.count ? ~0u : 0u;
    const __mmask32 has_two = i + 1 < block.count ? ~0u : 0u;
    for (int d = 0; d < D; d += kDepth) {
      const __m512i x = _mm512_maskz_loadu_epi16(has_one, token + d);
      const __m512i y = _mm512_maskz_loadu_epi16(has_two, token + head.v_stride + d);
      uint32_t* to = block.values[i / 2] + d;
      _mm512_store_si512(to, _mm512_permutex2var_epi16(x, from_low, y));
      _mm512_store_si512(to + kTile, _mm512_permutex2var_epi16(x, from_high, y));
    }
  }
}

// The intrinsics that read tiles do not say so to the compiler.
inline void tiles_are_read() { __asm__ volatile("" ::: "memory"); }

// scores: [kBlock, kTile], of the keys of the block.
void score(const TileHead& head, const Block& block, const Queries& queries, float* scores) {
  const uint16_t* at[4] = {};
  int64_t stride[4] = {};
  for (int key = 0; key < block.count; key += 4 * kTile) {
    const int tiles = (block.count - key + kTile - 1) / kTile;
    for (int i = 0; i < 4 && i < tiles; ++i) {
      const int first = key + i * kTile;
      const bool whole = first + kTile <= block.count;
      at[i] = whole ? head.k + (block.first + first) * head.k_stride : block.last_keys[0];
      stride[i] = 2 * (whole ? head.k_stride : kTileChannels);
    }
    tiles_are_read();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int channel = 0; channel < head.head_dim; channel += kDepth) {
      _tile_loadd(6, queries.pairs[channel / 2], kBytes);
      _tile_loadd(4, at[0] + channel, stride[0]);
      _tile_dpbf16ps(0, 4, 6);
      if (tiles < 2) continue;
      _tile_loadd(5, at[1] + channel, stride[1]);
      _tile_dpbf16ps(1, 5, 6);
      if (tiles < 3) continue;
      _tile_loadd(4, at[2] + channel, stride[2]);
      _tile_dpbf16ps(2, 4, 6);
      if (tiles < 4) continue;
      _tile_loadd(5, at[3] + channel, stride[3]);
      _tile_dpbf16ps(3, 5, 6);
    }
    float* to = scores + key * kTile;
    _tile_stored(0, to, kBytes);
    if (tiles > 1) _tile_stored(1, to + kTile * kTile, kBytes);
    if (tiles > 2) _tile_stored(2, to + 2 * kTile * kTile, kBytes);
    if (tiles > 3) _tile_stored(3, to + 3 * kTile * kTile, kBytes);
  }
}

// Scores of a block become weights [kBlock / kDepth, kTile, pairs of keys], 0 for the keys that a
// query does not see; what is summed up is scaled by what the new top leaves of it.
void weigh(const TileHead& head, const Block& block, Queries& queries, float* scores,
           uint32_t* weights) {
  const __m512i begin = _mm512_load_si512(queries.begin), end = _mm512_load_si512(queries.end);
  __mmask16 seen[kBlock];
  const __m512 factor = _mm512_set1_ps(head.scale), hidden = _mm512_set1_ps(-INFINITY);
  __m512 top = queries.top;
  for (int j = 0; j < block.count; ++j) {
    const __m512i key = _mm512_set1_epi32(block.first + j);
    seen[j] = _mm512_mask_cmplt_epi32_mask(_mm512_cmple_epi32_mask(begin, key), key, end);
    const __m512 score = _mm512_mul_ps(_mm512_load_ps(scores + j * kTile), factor);
    _mm512_store_ps(scores + j * kTile, score);
    top = _mm512_max_ps(top, _mm512_mask_mov_ps(hidden, seen[j], score));
  }
  const __mmask16 blind = _mm512_cmp_ps_mask(top, hidden, _CMP_EQ_OQ);
  const __m512 from = _mm512_mask_mov_ps(top, blind, _mm512_setzero_ps());
  __m512 sum = _mm512_setzero_ps();
  const auto weight = [&](int j) {  // rounded
    if (j >= block.count) return _mm256_setzero_si256();
    const __m512 score = _mm512_sub_ps(_mm512_load_ps(scores + j * kTile), from);
    return (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_mov_ps(seen[j], exp_of(score)));
  };
  for (int j = 0; j < block.count; j += kDepth, weights += kTile * kTile) {
    __m512i pairs[kTile];
    for (int i = 0; i < kTile; ++i) {
      const __m512i low = _mm512_cvtepu16_epi32(weight(j + 2 * i));
      const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(weight(j + 2 * i + 1)), 16);
      sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(low, 16)));
      sum = _mm512_add_ps(sum, _mm512_castsi512_ps(high));
      pairs[i] = _mm512_or_si512(low, high);
    }
    transpose(pairs);
    for (int i = 0; i < kTile; ++i) _mm512_store_si512(weights + i * kTile, pairs[i]);
  }
  if (queries.started) {
    alignas(64) float left[kTile];
    const __m512 lost = exp_of(_mm512_sub_ps(queries.top, from));
    queries.total = _mm512_mul_ps(queries.total, lost);
    _mm512_store_ps(left, lost);
    for (int i = 0; i < kTile; ++i) {
      for (int d = 0; left[i] != 1.0f && d < head.head_dim; d += kTile) {
        float* at = queries.sums[i] + d;
        _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), _mm512_set1_ps(left[i])));
      }
    }
  }
  queries.total = _mm512_add_ps(queries.total, sum);
  queries.top = top;
}

// Adds the products of weights and values to the sums.
void add(const Block& block, int head_dim, const uint32_t* weights, Queries& queries) {
  constexpr int kRow = sizeof(float) * kTileChannels;
  for (int d = 0; d < head_dim; d += 4 * kTile) {
    const bool all = head_dim - d > 2 * kTile;  // channels are a multiple of two tiles
    float* to = queries.sums[0] + d;
    tiles_are_read();
    if (queries.started) {
      _tile_loadd(0, to, kRow);
      _tile_loadd(1, to + kTile, kRow);
      _tile_loadd(2, to + 2 * kTile * all, kRow);
      _tile_loadd(3, to + 3 * kTile * all, kRow);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int j = 0; j < block.count; j += kDepth) {
      const uint32_t* pairs = block.values[j / 2] + d;
      _tile_loadd(4, weights + j / kDepth * kTile * kTile, kBytes);
      _tile_loadd(5, pairs, kRow);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, pairs + kTile, kRow);
      _tile_dpbf16ps(1, 4, 6);
      if (!all) continue;
      _tile_loadd(5, pairs + 2 * kTile, kRow);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(6, pairs + 3 * kTile, kRow);
      _tile_dpbf16ps(3, 4, 6);
    }
    _tile_stored(0, to, kRow);
    _tile_stored(1, to + kTile, kRow);
    if (!all) continue;
    _tile_stored(2, to + 2 * kTile, kRow);
    _tile_stored(3, to + 3 * kTile, kRow);
  }
  queries.started = true;
}

bool write(const Queries& queries, const TileRow* rows, int count, int head_dim,
           float* lse_or_null) {
  alignas(64) float top[kTile], total[kTile];
  _mm512_store_ps(top, queries.top);
  _mm512_store_ps(total, queries.total);
  __mmask16 wrong = 0;
  for (int i = 0; i < count; ++i) {
    const bool sees = queries.started && total[i] != 0.0f;
    const __m512 share = _mm512_set1_ps(1.0f / total[i]);
    for (int d = 0; d < head_dim; d += kTile) {
      __m512 value = _mm512_setzero_ps();
      if (sees) value = _mm512_mul_ps(_mm512_load_ps(queries.sums[i] + d), share);
      constexpr int kNanOrInfinite = 0x99;
      wrong |= _mm512_fpclass_ps_mask(value, kNanOrInfinite);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows[i].out + d),
                          (__m256i)_mm512_cvtneps_pbh(value));
    }
    if (lse_or_null != nullptr) lse_or_null[i] = sees ? top[i] + logf(total[i]) : -INFINITY;
  }
  return wrong == 0;
}

}  // namespace

bool attend_in_tiles(const TileHead& head, const TileRow* rows, int count, float* lse_or_null) {
  Queries queries[kTileRows / kTile];
  Block block;
  alignas(64) float scores[kBlock * kTile];
  alignas(64) uint32_t weights[kBlock / kDepth * kTile * kTile];
  const int tiles = (count + kTile - 1) / kTile;
  int first = INT32_MAX, last = 0;
  for (int i = 0; i < tiles; ++i) {
    Queries& own = queries[i];
    read(rows + i * kTile, count - i * kTile, head.head_dim, own);
    if (own.first < first) first = own.first;
    if (own.last > last) last = own.last;
  }
  const TileConfig config;
  tiles_are_read();
  _tile_loadconfig(&config);
  for (block.first = first; block.first < last; block.first += kBlock) {
    block.count = last - block.first < kBlock ? last - block.first : kBlock;
    read(head, block);
    for (int i = 0; i < tiles; ++i) {
      Queries& own = queries[i];
      if (own.first >= block.first + block.count || own.last <= block.first) continue;
      score(head, block, own, scores);
      weigh(head, block, own, scores, weights);
      add(block, head.head_dim, weights, own);
    }
  }
  _tile_release();
  bool finite = true;
  for (int i = 0; i < tiles; ++i) {
    const int some = count - i * kTile < kTile ? count - i * kTile : kTile;
    float* lse = lse_or_null == nullptr ? nullptr : lse_or_null + i * kTile;
    finite &= write(queries[i], rows + i * kTile, some, head.head_dim, lse);
  }
  return finite;
}

}  // namespace bdk
