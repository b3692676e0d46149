// Statistics of all lanes of a block at once. For each lane they equal the functions of core/pair_counts.h.
// Call them where an instruction set is selected.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/pair_counts.h"
#include "cpu/kernels.h"

namespace shfcas {

// Returns NaN or 0. Adding it lets the compiler vectorise where it would branch.
template <class K>
SHFCAS_INLINE double nan_if(K condition) {
  const int64_t bits = condition != 0 ? int64_t{0x7ff8000000000000} : int64_t{0};
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Writes tau-a or tau-b of each lane.
template <bool Roots, class K>
SHFCAS_INLINE void block_tau(const BlockCounts<K>& counts, int n, bool variant_a, double* tau) {
  const int32_t pairs = n * (n - 1) / 2;
  for (int l = 0; l < kBlockLanes<K>; ++l) {
    const int32_t untied_x = pairs - static_cast<int32_t>(counts.tied_x[l]),
                  untied_y = pairs - static_cast<int32_t>(counts.tied_y[l]);
    const int32_t excess = untied_x - static_cast<int32_t>(counts.tied_y[l]) +
                           static_cast<int32_t>(counts.tied_both[l]) -
                           2 * static_cast<int32_t>(counts.discordant[l]);
    const double x = untied_x, y = untied_y, same = variant_a ? pairs : x;
    const double scale = Roots ? (untied_x == untied_y ? same : std::sqrt(x * y)) : same;
    double value = excess / scale;
    value = value > 1 ? 1 : value;  // rounding may exceed [-1, 1]
    value = value < -1 ? -1 : value;
    tau[l] = value + nan_if(counts.invalid[l]);  // 0 / 0 without pairs that are not tied
  }
}

template <class K>
SHFCAS_INLINE void block_tau(const BlockCounts<K>& counts, int n, TauVariant variant, double* tau) {
  K uneven = 0;  // without ties, no roots
  for (int l = 0; l < kBlockLanes<K>; ++l) uneven |= counts.tied_x[l] ^ counts.tied_y[l];
  if (variant == TauVariant::b && uneven != 0)
    block_tau<true>(counts, n, false, tau);
  else
    block_tau<false>(counts, n, variant == TauVariant::a, tau);
}

// Writes the discordant pairs of each lane, as a fraction of all pairs if normalized.
template <class K>
SHFCAS_INLINE void block_distance(const BlockCounts<K>& counts, int n, bool normalized, double* distance) {
  const double pairs = normalized ? n * (n - 1) / 2 : 1;
  for (int l = 0; l < kBlockLanes<K>; ++l) {
    const double value = static_cast<int32_t>(counts.discordant[l]) / pairs;  // NaN without pairs
    distance[l] = value + nan_if(counts.invalid[l]);
  }
}

// Writes the five counts of each lane, as kendall_counts returns them.
template <class K>
SHFCAS_INLINE void block_columns(const BlockCounts<K>& counts, int n, int64_t (*columns)[kBlockLanes<K>]) {
  const K pairs = static_cast<K>(n * (n - 1) / 2);
  for (int l = 0; l < kBlockLanes<K>; ++l) {
    const K invalid = counts.invalid[l] != 0 ? K{-1} : K{0}, discordant = counts.discordant[l],
            tied_x = counts.tied_x[l], tied_y = counts.tied_y[l], tied_both = counts.tied_both[l];
    columns[0][l] = (pairs - discordant - tied_x - tied_y + tied_both) | invalid;
    columns[1][l] = discordant | invalid;
    columns[2][l] = tied_x | invalid;
    columns[3][l] = tied_y | invalid;
    columns[4][l] = tied_both | invalid;
  }
}

}  // namespace shfcas
