// Pair bits: one bit per pair of elements of a vector. All vectors are compared by these bits.
#pragma once

#include "cpu/kernels.h"
#include "cpu/level/registers.h"

namespace shfcas::SHFCAS_LEVEL {

// Cursor over the pairs i < j of n elements.
struct PairCursor {
  int64_t i = 0, j = 1;
  SHFCAS_INLINE void advance(int64_t n) {
    if (++j >= n) j = ++i + 1;
  }
};

inline void pack_pairs(const int32_t* columns, int64_t n, int64_t& i, int64_t& j, int64_t words,
                       uint32_t* less, uint32_t* untied) {
  using V = Register<int32_t>;
  using U = Register<uint32_t>;
  constexpr int lanes = kLanesOf<int32_t>, parts = kPairGroup / lanes;
  PairCursor cursor{i, j};
  for (int64_t w = 0; w < words; ++w) {
    U less_bits[parts] = {}, untied_bits[parts] = {};
    for (int bit = 0; bit < 32 && cursor.j < n; ++bit, cursor.advance(n))
      for (int part = 0; part < parts; ++part) {
        const V a = load<V>(columns + cursor.i * kPairGroup + part * lanes),
                b = load<V>(columns + cursor.j * kPairGroup + part * lanes);
        less_bits[part] = (less_bits[part] << 1) - (U)(a < b);  // true is -1
        untied_bits[part] = (untied_bits[part] << 1) - (U)(a != b);
      }
    for (int part = 0; part < parts; ++part) {
      store(less + w * kPairGroup + part * lanes, less_bits[part]);
      store(untied + w * kPairGroup + part * lanes, untied_bits[part]);
    }
  }
  i = cursor.i;
  j = cursor.j;
}

// Counts the set bits of each lane.
SHFCAS_INLINE Register<uint32_t> count_bits(Register<uint32_t> v) {
#if SHFCAS_REGISTER_BYTES == 64
  return (Register<uint32_t>)_mm512_popcnt_epi32((__m512i)v);
#else
  v -= (v >> 1) & 0x55555555;
  v = (v & 0x33333333) + ((v >> 2) & 0x33333333);
  v = (v + (v >> 4)) & 0x0f0f0f0f;
  v += v >> 8;
  return (v + (v >> 16)) & 0x3f;
#endif
}

template <bool Tied>
SHFCAS_INLINE void compare_vectors(const PairBits& a, int first, const PairBits& b, int64_t words,
                                   int32_t* const* discordant, int32_t* const* comparable) {
  using V = Register<uint32_t>;
  constexpr int lanes = kLanesOf<uint32_t>;
  constexpr int together = kBytes == 64 ? 2 : 1;  // registers of b at once
  for (int part = 0; part < kPairGroup; part += together * lanes) {
    V against[kPairRows][together] = {}, both[kPairRows][together] = {};
    for (int64_t w = 0; w < words; ++w) {
      const int64_t row = w * kPairGroup;
      for (int t = 0; t < together; ++t) {
        const V less = load<V>(b.less + row + part + t * lanes);
        const V untied = Tied ? load<V>(b.untied + row + part + t * lanes) : V{};
        for (int r = 0; r < kPairRows; ++r) {
          V differ = less ^ (V{} + a.less[row + first + r]);
          if (Tied) {
            const V mask = untied & (V{} + a.untied[row + first + r]);
            differ &= mask;
            both[r][t] += count_bits(mask);
          }
          against[r][t] += count_bits(differ);
        }
      }
    }
    for (int r = 0; r < kPairRows; ++r)
      for (int t = 0; t < together; ++t) {
        int32_t* out = discordant[r] + part + t * lanes;
        store(out, load<V>(out) + against[r][t]);
        if (Tied) {
          out = comparable[r] + part + t * lanes;
          store(out, load<V>(out) + both[r][t]);
        }
      }
  }
}

inline void compare_pairs(const PairBits& a, int first, const PairBits& b, int64_t words,
                          int32_t* const* discordant, int32_t* const* comparable) {
  if (comparable)
    compare_vectors<true>(a, first, b, words, discordant, comparable);
  else
    compare_vectors<false>(a, first, b, words, discordant, nullptr);
}

}  // namespace shfcas::SHFCAS_LEVEL
