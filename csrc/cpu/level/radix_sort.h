// Radix sort of words by some of their bits, least significant digit first.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/aligned_buffer.h"

namespace shfcas::SHFCAS_LEVEL {

// Sorts words[0, n) by the bits [low, low + bits); the sort is stable. The buffer is scratch memory.
inline void radix_sort(AlignedBuffer<int64_t>& words, AlignedBuffer<int64_t>& buffer, int64_t n, int low,
                       int bits) {
  const int max_digit = n < (1 << 18) ? 11 : 16;  // counters fit the L1 cache; fewer passes
  buffer.reserve(words.size());                   // the two are swapped
  const int passes = (bits + max_digit - 1) / max_digit;
  if (passes == 0) return;
  const int digit = (bits + passes - 1) / passes;
  const uint64_t mask = (uint64_t{1} << digit) - 1;
  std::vector<uint32_t> next(static_cast<size_t>(passes) << digit);
  for (int64_t i = 0; i < n; ++i)
    for (int pass = 0; pass < passes; ++pass)
      ++next[(static_cast<size_t>(pass) << digit) +
             (static_cast<uint64_t>(words[i]) >> (low + pass * digit) & mask)];
  for (int pass = 0; pass < passes; ++pass) {
    uint32_t* places = next.data() + (static_cast<size_t>(pass) << digit);
    uint32_t sum = 0;
    for (uint64_t d = 0; d <= mask; ++d) {
      const uint32_t count = places[d];
      places[d] = sum;
      sum += count;
    }
    const int shift = low + pass * digit;
    const int64_t* from = words.data();
    int64_t* to = buffer.data();
    for (int64_t i = 0; i < n; ++i) to[places[static_cast<uint64_t>(from[i]) >> shift & mask]++] = from[i];
    words.swap(buffer);
  }
}

}  // namespace shfcas::SHFCAS_LEVEL
