// Pair counts of several short rows of one length at once, one row a lane, by comparing every pair.
//
// Layout: element i of the row in lane l is at [i * kLanes + l], a cache line per element.
#pragma once

#include <array>
#include <cstdint>

#include "core/keys.h"
#include "core/macros.h"
#include "core/pair_counts.h"
#include "cpu/simd.h"

namespace shfcas {

constexpr int64_t kMaxBlockLength = 64;  // above, sorting is faster than comparing every pair

template <class T>
class PairBlock {
 public:
  using K = Key<T>;
  static constexpr int kLanes = 64 / sizeof(K);

  SHFCAS_INLINE void set_row(int lane, const T* row_x, const T* row_y, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      x_[i * kLanes + lane] = bits_of(row_x[i]);
      y_[i * kLanes + lane] = bits_of(row_y[i]);
    }
  }

  // Counts of all lanes; those of lanes that hold no row are without meaning. Turns the rows into keys.
  template <class W>
  SHFCAS_INLINE void count(W, int64_t n, std::array<PairCounts, kLanes>& counts) {
    switch (n) {  // common lengths unroll
      case 4:
        return count_rows<W::bytes>(4, counts);
      case 8:
        return count_rows<W::bytes>(8, counts);
      case 16:
        return count_rows<W::bytes>(16, counts);
      default:
        return count_rows<W::bytes>(n, counts);
    }
  }

 private:
  template <int Bytes>
  SHFCAS_INLINE void count_rows(int64_t n, std::array<PairCounts, kLanes>& counts) {
    using V = Register<K, Bytes>;
    constexpr int lanes = Bytes / sizeof(K);
    constexpr int stride = kLanes / lanes;
    for (int part = 0; part < stride; ++part) {
      V* const x = reinterpret_cast<V*>(x_) + part;
      V* const y = reinterpret_cast<V*>(y_) + part;
      V invalid = {}, discordant = {}, tied_x = {}, tied_y = {}, tied_both = {};
      for (int64_t i = 0; i < n; ++i) {
        to_keys(x[i * stride], invalid);
        to_keys(y[i * stride], invalid);
      }
      for (int64_t i = 0; i + 1 < n; ++i) {
        const V xi = x[i * stride], yi = y[i * stride];
        for (int64_t j = i + 1; j < n; ++j) {
          const V xj = x[j * stride], yj = y[j * stride];
          const V same_x = xi == xj, same_y = yi == yj;
          const V opposite = (xi < xj) ^ (yi < yj);
          discordant -= opposite & ~(same_x | same_y);  // true is -1
          tied_x -= same_x;
          tied_y -= same_y;
          tied_both -= same_x & same_y;
        }
      }
      for (int l = 0; l < lanes; ++l)
        counts[part * lanes + l] =
            invalid[l] ? invalid_counts() : make_counts(n, discordant[l], tied_x[l], tied_y[l], tied_both[l]);
    }
  }

  template <class V>
  static SHFCAS_INLINE void to_keys(V& bits, V& invalid) {
    if constexpr (KeyOf<T>::floating) invalid |= (bits & KeyOf<T>::magnitude) > KeyOf<T>::infinity;
    bits_to_key<T>(bits);
  }

  alignas(64) K x_[kMaxBlockLength * kLanes] = {};
  alignas(64) K y_[kMaxBlockLength * kLanes] = {};
};

}  // namespace shfcas
