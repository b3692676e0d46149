// Pair counts of one row of any length in O(N log N) (Knight 1966): sort by (x, y); runs of equal keys are
// the ties, and what is discordant is an inversion of y, counted by a merge sort.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/pair_counts.h"

namespace shfcas {

// Two keys as one value that sorts by the first, then by the second.
inline uint64_t joined(int32_t x, int32_t y) {
  constexpr uint32_t bias = 1u << 31;
  return static_cast<uint64_t>(static_cast<uint32_t>(x) ^ bias) << 32 | (static_cast<uint32_t>(y) ^ bias);
}
inline int32_t first_of(uint64_t keys) { return static_cast<int32_t>((keys >> 32) ^ (1u << 31)); }
inline int32_t second_of(uint64_t keys) {
  return static_cast<int32_t>(static_cast<uint32_t>(keys) ^ (1u << 31));
}

inline std::pair<int64_t, int64_t> joined(int64_t x, int64_t y) { return {x, y}; }
inline int64_t first_of(const std::pair<int64_t, int64_t>& keys) { return keys.first; }
inline int64_t second_of(const std::pair<int64_t, int64_t>& keys) { return keys.second; }

template <class K>
class SortCounter {
 public:
  // Reuses its scratch memory from row to row.
  template <class T>
  PairCounts count(const T* x, const T* y, int64_t n) {
    pairs_.resize(n);
    keys_.resize(n);
    buffer_.resize(n);
    for (int64_t i = 0; i < n; ++i) {
      if (is_nan(x[i]) || is_nan(y[i])) return invalid_counts();
      pairs_[i] = joined(ordered_key(x[i]), ordered_key(y[i]));
    }
    std::sort(pairs_.begin(), pairs_.end());
    for (int64_t i = 0; i < n; ++i) keys_[i] = second_of(pairs_[i]);

    const Runs both = runs(n, [&](int64_t i) { return pairs_[i] == pairs_[i - 1]; });
    const Runs of_x = runs(n, [&](int64_t i) { return first_of(pairs_[i]) == first_of(pairs_[i - 1]); });
    const int64_t discordant = sort_counting_inversions(n);
    const Runs of_y = runs(n, [&](int64_t i) { return keys_[i] == keys_[i - 1]; });
    return make_counts(n, discordant, of_x.pairs, of_y.pairs, both.pairs, std::min(of_x.count, of_y.count),
                       of_x.triples, of_y.triples);
  }

 private:
  struct Runs {
    int64_t count;   // distinct values
    int64_t pairs;   // pairs within a run
    double triples;  // t (t - 1) (t - 2), summed over runs of length t
  };

  template <class Same>
  static Runs runs(int64_t n, const Same& same_as_previous) {
    Runs result{n > 0, 0, 0};
    int64_t length = 1;
    for (int64_t i = 1; i < n; ++i) {
      if (same_as_previous(i)) {
        result.triples += 3.0 * static_cast<double>(length) * static_cast<double>(length - 1);
        result.pairs += length++;
      } else {
        ++result.count;
        length = 1;
      }
    }
    return result;
  }

  // Sorts keys_ and returns the number of pairs that were in strictly descending order.
  int64_t sort_counting_inversions(int64_t n) {
    constexpr int64_t block = 16;
    int64_t inversions = 0;
    for (int64_t begin = 0; begin < n; begin += block)
      inversions += insertion_sort(begin, std::min(begin + block, n));
    for (int64_t width = block; width < n; width *= 2) {
      for (int64_t begin = 0; begin < n; begin += 2 * width)
        inversions += merge(begin, std::min(begin + width, n), std::min(begin + 2 * width, n));
      keys_.swap(buffer_);
    }
    return inversions;
  }

  int64_t insertion_sort(int64_t begin, int64_t end) {
    int64_t inversions = 0;
    for (int64_t i = begin + 1; i < end; ++i) {
      const K key = keys_[i];
      int64_t j = i;
      for (; j > begin && key < keys_[j - 1]; --j) keys_[j] = keys_[j - 1];
      keys_[j] = key;
      inversions += i - j;
    }
    return inversions;
  }

  // Merges keys_[begin, middle) and keys_[middle, end) into buffer_. An element of the right half passes all
  // that is left of the left half. Without branches on the data, which nobody could predict.
  int64_t merge(int64_t begin, int64_t middle, int64_t end) {
    int64_t inversions = 0, left = begin, right = middle, out = begin;
    while (left < middle && right < end) {
      const bool passes = keys_[right] < keys_[left];
      buffer_[out++] = passes ? keys_[right] : keys_[left];
      inversions += passes ? middle - left : 0;
      right += passes;
      left += !passes;
    }
    std::copy(keys_.begin() + left, keys_.begin() + middle, buffer_.begin() + out);
    std::copy(keys_.begin() + right, keys_.begin() + end, buffer_.begin() + out + (middle - left));
    return inversions;
  }

  std::vector<decltype(joined(K{}, K{}))> pairs_;
  std::vector<K> keys_, buffer_;
};

}  // namespace shfcas
