// PACS of consecutive rows.
#pragma once

#include "core/pacs.h"
#include "core/rows.h"
#include "core/team.h"
#include "cpu/simd.h"

namespace shfcas {

// Writes the scores of rows [begin, end), and their summaries from summaries[0] on unless that is null.
//
// Not inlined: all ops share this code, and so agree to the last bit.
template <class T>
__attribute__((noinline)) void pacs_rows(const T* rewards, const T* logprobs, const Rows& rows, int64_t begin,
                                         int64_t end, T* scores, PacsSummary* summaries) {
  vectorize([&](auto) SHFCAS_INLINE_LAMBDA {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t first = rows.begin(row), n = rows.size(row);
      const auto write = [&](int64_t length) SHFCAS_INLINE_LAMBDA {
        return write_pacs(SerialTeam{}, rewards + first, logprobs + first, length, scores + first);
      };
      PacsSummary summary;
      switch (n) {  // common lengths unroll into a few registers
        case 4:
          summary = write(4);
          break;
        case 8:
          summary = write(8);
          break;
        case 16:
          summary = write(16);
          break;
        default:
          summary = write(n);
      }
      if (summaries) summaries[row - begin] = summary;
    }
  });
}

}  // namespace shfcas
