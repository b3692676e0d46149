// Grain sizes: the work per thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/rows.h"

namespace shfcas {

// Returns the minimum number of rows per thread that makes scheduling cheaper than the work.
inline int64_t row_grain(int64_t operations_per_row) { return 1 + (1 << 17) / (1 + operations_per_row); }

// Rough cost per row of counting its pairs, and of computing its scores.
inline int64_t counting_cost(const Rows& rows) {
  const int64_t n = rows.mean_length();
  return n * std::min<int64_t>(n, 64);
}
inline int64_t scoring_cost(const Rows& rows) { return 4 * rows.mean_length(); }

}  // namespace shfcas
