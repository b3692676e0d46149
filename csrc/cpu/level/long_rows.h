// Pair counts of long rows in O(N log N) (Knight 1966). Sort by x, then sort the result by y with a stable
// sort. A discordant pair is an inversion of the positions in x.
//
// The sort works on words of 63 bits: key << position_bits | position. A 32-bit key fits. A 64-bit key is
// represented by its leading bits; where they are equal, the full keys decide. Words of several rows are
// sorted side by side in vector registers, words of a single row with a radix sort.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/pair_counts.h"
#include "cpu/aligned_buffer.h"
#include "cpu/kernels.h"
#include "cpu/level/contingency.h"
#include "cpu/level/inversions.h"
#include "cpu/level/radix_sort.h"
#include "cpu/level/sorting.h"

namespace shfcas::SHFCAS_LEVEL {

inline int bit_width(uint64_t value) { return value ? 64 - __builtin_clzll(value) : 0; }

// Conversion of the keys of a row to words.
template <class K>
class WordFormat {
 public:
  WordFormat() = default;
  // varying has a bit set where keys of the row differ.
  WordFormat(K smallest, K largest, uint64_t varying, int64_t n)
      : smallest_(static_cast<uint64_t>(smallest)), position_bits_(bit_width(static_cast<uint64_t>(n - 1))) {
    const int width = bit_width(static_cast<uint64_t>(largest) - smallest_);
    shift_ = std::max(0, width - (63 - position_bits_));
    key_bits_ = width - shift_;
    exact_ = (varying & ((uint64_t{1} << shift_) - 1)) == 0;
  }

  int64_t word(K key, int64_t position) const {
    return static_cast<int64_t>((static_cast<uint64_t>(key) - smallest_) >> shift_ << position_bits_) |
           position;
  }
  int64_t position(int64_t word) const { return word & ((int64_t{1} << position_bits_) - 1); }
  bool same_key_bits(int64_t word, int64_t other) const { return (word ^ other) >> position_bits_ == 0; }
  bool exact() const { return exact_; }  // words contain every key bit that varies
  int position_bits() const { return position_bits_; }
  int key_bits() const { return key_bits_; }

 private:
  uint64_t smallest_ = 0;
  int position_bits_ = 0, shift_ = 0, key_bits_ = 0;
  bool exact_ = true;
};

// The runs of equal elements in a sorted row.
struct Runs {
  AlignedBuffer<uint32_t> starts;  // start of the run of each element, if there are ties
  int64_t pairs = 0;               // pairs within runs
  int64_t distinct = 0;

  // Returns t (t - 1) (t - 2), summed over the runs of length t of n elements.
  double triples(int64_t n) const {
    double sum = 0;
    for (int64_t k = 0; pairs > 0 && k < n; ++k) {
      const double before = static_cast<double>(k - starts[k]);
      sum += 3 * before * (before - 1);
    }
    return sum;
  }
};

template <class T>
class SortingCounter final : public LongRowCounter<T> {
  using K = Key<T>;

 public:
  explicit SortingCounter(bool with_classes) : with_classes_(with_classes) {}

  void count(const T* x, const T* y, const int64_t* offsets, const int64_t* sizes, int rows,
             PairCounts* out) override {
    int64_t left_offsets[kWordLanes], left_sizes[kWordLanes];
    PairCounts counts[kWordLanes];
    int left[kWordLanes], num_left = 0;
    for (int r = 0; r < rows; ++r) {
      if (sizes[r] >= kMinContingency && few_.count(x + offsets[r], y + offsets[r], sizes[r], out[r]))
        continue;
      left_offsets[num_left] = offsets[r];
      left_sizes[num_left] = sizes[r];
      left[num_left++] = r;
    }
    if (num_left == 0) return;
    const int64_t longest = *std::max_element(left_sizes, left_sizes + num_left);
    pitch_ = (longest + 3) / 4 * 4 + 8;  // no power of two, where rows would evict each other from the cache
    if (longest <= kMaxSideBySide && (num_left > 2 || longest <= kMaxIdleLanes)) {
      count_side_by_side(x, y, left_offsets, left_sizes, num_left, longest, counts);
    } else {
      for (int r = 0; r < num_left; ++r)
        counts[r] = count_alone(x + left_offsets[r], y + left_offsets[r], left_sizes[r]);
    }
    for (int r = 0; r < num_left; ++r) out[left[r]] = counts[r];
  }

 private:
  // Few rows leave lanes idle, which matters little for short rows.
  static constexpr int64_t kMaxSideBySide = 4096, kMaxIdleLanes = 512;
  static constexpr int64_t kMinContingency = 512;

  struct Row {
    int64_t n;
    AlignedBuffer<K> x_keys, y_keys;
    WordFormat<K> x_format, y_format;
    AlignedBuffer<uint32_t> order;  // positions in the row, sorted by x; filled if y keys must be looked up
    Runs x_runs;
    bool invalid;
  };

  void count_side_by_side(const T* x, const T* y, const int64_t* offsets, const int64_t* sizes, int rows,
                          int64_t longest, PairCounts* out) {
    for (auto* words : {&x_words_, &y_words_}) words->reserve(pitch_ * kWordLanes);
    columns_.reserve(std::max<int64_t>(16, int64_t{1} << bit_width(longest - 1)) * kWordLanes);
    const auto sort = [&](int64_t* words) {
      for (int r = 0; r < rows; ++r)
        std::fill(words + r * pitch_ + sizes[r], words + r * pitch_ + longest, INT64_MAX);
      sort_words(words, pitch_, static_cast<int>(longest), columns_.data());
    };
    int64_t *x_words = x_words_.data(), *y_words = y_words_.data();
    for (int r = 0; r < rows; ++r)
      start(rows_[r], x + offsets[r], y + offsets[r], sizes[r], x_words + r * pitch_);
    sort(x_words);
    for (int r = 0; r < rows; ++r) follow_x(rows_[r], x_words + r * pitch_, y_words + r * pitch_);
    sort(y_words);
    for (int r = 0; r < rows; ++r) out[r] = follow_y(rows_[r], y_words + r * pitch_);
  }

  PairCounts count_alone(const T* x, const T* y, int64_t n) {
    Row& row = rows_[0];
    for (auto* words : {&x_words_, &y_words_}) words->reserve(pitch_);
    start(row, x, y, n, x_words_.data());
    radix_sort(x_words_, buffer_, n, row.x_format.position_bits(), row.x_format.key_bits());
    follow_x(row, x_words_.data(), y_words_.data());
    radix_sort(y_words_, buffer_, n, row.y_format.position_bits(), row.y_format.key_bits());
    return follow_y(row, y_words_.data());
  }

  // Computes the keys, and the words of x in row order.
  void start(Row& row, const T* x, const T* y, int64_t n, int64_t* x_words) {
    row.n = n;
    row.invalid = false;
    make_keys(x, n, row.x_keys, row.x_format, row.invalid);
    make_keys(y, n, row.y_keys, row.y_format, row.invalid);
    const WordFormat<K> format = row.x_format;
    const K* keys = row.x_keys.data();
    for (int64_t i = 0; i < n; ++i) x_words[i] = format.word(keys[i], i);
  }

  static void make_keys(const T* values, int64_t n, AlignedBuffer<K>& keys, WordFormat<K>& format,
                        bool& invalid) {
    keys.reserve(n);
    K* out = keys.data();
    const K first = ordered_key(values[0]);
    K smallest = first, largest = first, varying = 0;
    int nan = 0;
#pragma omp simd reduction(min : smallest) reduction(max : largest) reduction(| : varying, nan)
    for (int64_t i = 0; i < n; ++i) {
      const K key = ordered_key(values[i]);
      out[i] = key;
      nan |= is_nan(values[i]) ? 1 : 0;
      smallest = key < smallest ? key : smallest;
      largest = key > largest ? key : largest;
      varying |= key ^ first;
    }
    invalid |= nan != 0;
    format = WordFormat<K>(smallest, largest, static_cast<uint64_t>(varying), n);
  }

  // Computes the ties of x from its sorted words, and the words of y in the order of x.
  void follow_x(Row& row, int64_t* x_words, int64_t* y_words) {
    const WordFormat<K> x_format = row.x_format, y_format = row.y_format;
    const auto key = [&](int64_t word) { return row.x_keys[x_format.position(word)]; };
    repair(x_words, row.n, x_format, key);
    find_runs(x_words, row.n, x_format, key, row.x_runs);
    const K* y_keys = row.y_keys.data();
    for (int64_t k = 0; k < row.n; ++k) y_words[k] = y_format.word(y_keys[x_format.position(x_words[k])], k);
    if (y_format.exact()) return;
    row.order.reserve(row.n);
    for (int64_t k = 0; k < row.n; ++k) row.order[k] = static_cast<uint32_t>(x_format.position(x_words[k]));
  }

  // Computes all counts from the words sorted by y.
  PairCounts follow_y(const Row& row, int64_t* y_words) {
    if (row.invalid) return invalid_counts();
    const int64_t n = row.n;
    const WordFormat<K> y_format = row.y_format;
    const auto key = [&](int64_t word) { return row.y_keys[row.order[y_format.position(word)]]; };
    repair(y_words, n, y_format, key);
    find_runs(y_words, n, y_format, key, y_runs_);
    positions_.reserve(n);
    scratch_.reserve(n);
    uint32_t* positions = positions_.data();
    for (int64_t k = 0; k < n; ++k) positions[k] = static_cast<uint32_t>(y_format.position(y_words[k]));
    const int64_t tied_both = row.x_runs.pairs > 0 ? settle_x_ties(row.x_runs.starts.data(), n) : 0;
    const int64_t discordant = count_inversions(positions, scratch_.data(), n);
    return make_counts(n, discordant, row.x_runs.pairs, y_runs_.pairs, tied_both,
                       std::min(row.x_runs.distinct, y_runs_.distinct),
                       with_classes_ ? row.x_runs.triples(n) : 0, with_classes_ ? y_runs_.triples(n) : 0);
  }

  // Assigns the positions within a run of equal x in the order of y, so that none of its pairs is an
  // inversion. Returns the number of pairs tied in both.
  int64_t settle_x_ties(const uint32_t* x_starts, int64_t n) {
    uint32_t* positions = positions_.data();
    taken_.reserve(n);
    uint32_t* taken = taken_.data();
    std::fill_n(taken, n, 0);
    const uint32_t* y_starts = y_runs_.pairs > 0 ? y_runs_.starts.data() : nullptr;
    int64_t tied_both = 0, run = 0;
    uint32_t previous = 0;
    for (int64_t k = 0; k < n; ++k) {
      const uint32_t x_start = x_starts[positions[k]];
      if (y_starts) {
        run = (y_starts[k] != k) & (x_start == previous) ? run + 1 : 0;
        tied_both += run;
        previous = x_start;
      }
      positions[k] = x_start + taken[x_start]++;
    }
    return tied_both;
  }

  template <class KeyOfWord>
  static bool same_key(const WordFormat<K>& format, int64_t word, int64_t other, const KeyOfWord& key) {
    return format.same_key_bits(word, other) && (format.exact() || key(word) == key(other));
  }

  template <class KeyOfWord>
  static void find_runs(const int64_t* words, int64_t n, const WordFormat<K>& format, const KeyOfWord& key,
                        Runs& runs) {
    runs.pairs = 0;
    runs.distinct = n;
    int64_t same = 0;
    for (int64_t k = 1; k < n; ++k) same += format.same_key_bits(words[k], words[k - 1]);
    if (same == 0) return;
    runs.starts.reserve(n);
    runs.starts[0] = 0;
    uint32_t start = 0;
    for (int64_t k = 1; k < n; ++k) {
      const bool tied = same_key(format, words[k], words[k - 1], key);
      start = tied ? start : static_cast<uint32_t>(k);
      runs.starts[k] = start;
      runs.pairs += k - start;
      runs.distinct -= tied;
    }
  }

  // Sorts runs of words with equal key bits by their full keys.
  template <class KeyOfWord>
  void repair(int64_t* words, int64_t n, const WordFormat<K>& format, const KeyOfWord& key) {
    if (format.exact()) return;
    for (int64_t begin = 0, end; begin < n; begin = end) {
      for (end = begin + 1; end < n && format.same_key_bits(words[end], words[begin]);) ++end;
      if (end - begin > 1)
        std::sort(words + begin, words + end, [&](int64_t a, int64_t b) {
          const K key_a = key(a), key_b = key(b);
          return key_a != key_b ? key_a < key_b : a < b;
        });
    }
  }

  const bool with_classes_;
  ContingencyCounter<T> few_;
  Row rows_[kWordLanes];
  int64_t pitch_;
  AlignedBuffer<int64_t> x_words_, y_words_, buffer_, columns_;
  Runs y_runs_;
  AlignedBuffer<uint32_t> positions_, scratch_, taken_;
};

}  // namespace shfcas::SHFCAS_LEVEL
