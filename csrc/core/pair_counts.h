// Counts of the N (N - 1) / 2 pairs of a row, and the statistics that follow from them.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/keys.h"
#include "core/macros.h"

namespace shfcas {

struct PairCounts {
  int64_t concordant;
  int64_t discordant;
  int64_t tied_x;     // tied in x, whether or not in y
  int64_t tied_y;     // tied in y, whether or not in x
  int64_t tied_both;  // tied in both
  // Tie statistics for variant c and p-values; 0 if not requested.
  int64_t classes;   // the smaller number of distinct values of x and of y
  double triples_x;  // t (t - 1) (t - 2), summed over the groups of t equal values of x
  double triples_y;  // the same for y

  SHFCAS_INLINE bool valid() const { return concordant >= 0; }
};

SHFCAS_INLINE int64_t num_pairs(int64_t n) { return n * (n - 1) / 2; }

// Fills in the concordant pairs: every pair is concordant, discordant or tied.
SHFCAS_INLINE PairCounts make_counts(int64_t n, int64_t discordant, int64_t tied_x, int64_t tied_y,
                                     int64_t tied_both, int64_t classes = 0, double triples_x = 0,
                                     double triples_y = 0) {
  return {num_pairs(n) - discordant - tied_x - tied_y + tied_both,
          discordant,
          tied_x,
          tied_y,
          tied_both,
          classes,
          triples_x,
          triples_y};
}

// Returns the counts of a row with a NaN.
SHFCAS_INLINE PairCounts invalid_counts() { return {-1, -1, -1, -1, -1, 0, NAN, NAN}; }

enum class TauVariant { a, b, c };

// Returns Kendall's tau-a or tau-b, or Stuart's tau-c. NaN for fewer than two elements, for an invalid row,
// and for variants b and c if x or y is constant.
SHFCAS_INLINE double tau_from_counts(const PairCounts& counts, int64_t n, TauVariant variant) {
  if (n < 2 || !counts.valid()) return NAN;
  const double excess = static_cast<double>(counts.concordant - counts.discordant);
  const int64_t pairs = num_pairs(n);
  if (variant == TauVariant::a) return excess / static_cast<double>(pairs);
  if (counts.tied_x == pairs || counts.tied_y == pairs) return NAN;
  double tau;
  if (variant == TauVariant::b) {
    const double x = static_cast<double>(pairs - counts.tied_x),
                 y = static_cast<double>(pairs - counts.tied_y);
    tau = excess / (x == y ? x : sqrt(x * y));
  } else {
    const double size = static_cast<double>(n), classes = static_cast<double>(counts.classes);
    tau = 2 * excess / (size * size * (classes - 1) / classes);
  }
  return tau > 1 ? 1 : (tau < -1 ? -1 : tau);  // rounding may exceed [-1, 1]
}

// Returns the discordant pairs, as a fraction of all pairs if normalized (NaN for fewer than two elements).
SHFCAS_INLINE double distance_from_counts(const PairCounts& counts, int64_t n, bool normalized) {
  if (!counts.valid()) return NAN;
  const double discordant = static_cast<double>(counts.discordant);
  return normalized ? discordant / static_cast<double>(num_pairs(n)) : discordant;
}

}  // namespace shfcas
