// How much work a thread gets.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/rows.h"

namespace shfcas {

// Rows a thread should take at least, so that handing out the work costs less than the work.
inline int64_t row_grain(int64_t operations_per_row) { return 1 + (1 << 17) / (1 + operations_per_row); }

// Rough costs of a row: of counting its pairs, and of its scores.
inline int64_t counting_cost(const Rows& rows) {
  const int64_t n = rows.mean_length();
  return n * std::min<int64_t>(n, 64);
}
inline int64_t scoring_cost(const Rows& rows) { return 4 * rows.mean_length(); }

}  // namespace shfcas
