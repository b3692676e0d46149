// Layout of rows in a flat array of values.
//   dense:  row r is values[r * length, (r + 1) * length)
//   jagged: row r is values[offsets[r], offsets[r + 1])
// Offsets are clamped to the array, so that bad offsets never make a kernel read out of bounds. On the CPU,
// where reading them needs no synchronisation, bad offsets raise an error earlier.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace shfcas {

struct Rows {
  int64_t count;           // number of rows
  int64_t total;           // number of values
  int64_t length;          // values in each row, when dense
  const int64_t* offsets;  // count + 1 offsets when jagged, else null

  SHFCAS_INLINE int64_t begin(int64_t row) const { return offsets ? clamped(offsets[row]) : row * length; }

  SHFCAS_INLINE int64_t size(int64_t row) const {
    if (!offsets) return length;
    const int64_t size = clamped(offsets[row + 1]) - clamped(offsets[row]);
    return size > 0 ? size : 0;
  }

  // Exact when dense; when jagged, an estimate for choosing a kernel.
  int64_t mean_length() const { return count > 0 ? total / count : 0; }

 private:
  SHFCAS_INLINE int64_t clamped(int64_t offset) const {
    return offset < 0 ? 0 : (offset > total ? total : offset);
  }
};

}  // namespace shfcas
