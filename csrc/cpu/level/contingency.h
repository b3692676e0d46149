// Pair counts of a row with few distinct values, from the contingency table of its value pairs: O(N).
#pragma once

#include "core/pair_counts.h"
#include "cpu/level/registers.h"

namespace shfcas::SHFCAS_LEVEL {

// Codes of distinct keys, numbered in order of first appearance.
template <class K>
class KeyCodes {
 public:
  static constexpr int kMax = 256;

  void clear() {
    size_ = 0;
    memset(codes_, 0xff, sizeof(codes_));
  }

  // Returns the code of a key, or kMax if it would be a new key beyond the capacity.
  SHFCAS_INLINE int code(K key, int capacity) {
    for (uint32_t slot = hash(key);; slot = (slot + 1) % kSlots) {
      const int16_t code = codes_[slot];
      if (code < 0) {
        if (size_ >= capacity) return kMax;
        keys_[size_] = key;
        codes_[slot] = static_cast<int16_t>(size_);
        return size_++;
      }
      if (keys_[code] == key) return code;
    }
  }

  int size() const { return size_; }

  // Writes the codes in ascending order of their keys.
  void sort(uint16_t* order) const {
    for (int c = 0; c < size_; ++c) order[c] = static_cast<uint16_t>(c);
    std::sort(order, order + size_, [this](uint16_t a, uint16_t b) { return keys_[a] < keys_[b]; });
  }

 private:
  static constexpr uint32_t kSlots = 1024;  // four times the maximum number of keys: few collisions

  static SHFCAS_INLINE uint32_t hash(K key) {
    return static_cast<uint32_t>((static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15) >> 54);
  }

  int size_ = 0;
  K keys_[kMax];
  int16_t codes_[kSlots];
};

template <class T>
class ContingencyCounter {
  using K = Key<T>;

 public:
  // Returns false early if the row has too many distinct values for a table of at most n cells.
  bool count(const T* x, const T* y, int64_t n, PairCounts& out) {
    const int most =
        n < kMaxValues * kMaxValues ? static_cast<int>(std::sqrt(static_cast<double>(n))) : kMaxValues;
    x_codes_.clear();
    y_codes_.clear();
    cells_.reserve(int64_t{most} * most);
    uint32_t* cells = cells_.data();
    std::fill_n(cells, int64_t{most} * most, 0);
    int nan = 0;
    for (int64_t i = 0; i < n; ++i) {
      nan |= is_nan(x[i]) | is_nan(y[i]);
      const int a = x_codes_.code(ordered_key(x[i]), most), b = y_codes_.code(ordered_key(y[i]), most);
      if (a == KeyCodes<K>::kMax || b == KeyCodes<K>::kMax) return false;
      ++cells[a * most + b];
    }
    out = nan ? invalid_counts() : count_cells(n, most);
    return true;
  }

 private:
  static constexpr int kMaxValues = 255;  // distinct values of x, and of y

  struct Groups {
    int64_t pairs = 0, distinct = 0;
    double triples = 0;
    void add(int64_t size) {
      const double t = static_cast<double>(size);
      pairs += num_pairs(size);
      triples += t * (t - 1) * (t - 2);
      ++distinct;
    }
  };

  PairCounts count_cells(int64_t n, int pitch) {
    const int rows = x_codes_.size(), columns = y_codes_.size();
    uint16_t x_order[KeyCodes<K>::kMax], y_order[KeyCodes<K>::kMax];
    x_codes_.sort(x_order);
    y_codes_.sort(y_order);
    int64_t above[KeyCodes<K>::kMax] = {};  // per y: elements in the rows of smaller x
    int64_t discordant = 0, tied_both = 0;
    Groups x_groups, y_groups;
    for (int r = 0; r < rows; ++r) {
      const uint32_t* cells = cells_.data() + int64_t{x_order[r]} * pitch;
      int64_t larger = 0, total = 0;  // elements of smaller x and larger y; elements of this x
      for (int c = columns - 1; c >= 0; --c) {
        const int64_t cell = cells[y_order[c]];
        discordant += cell * larger;
        tied_both += num_pairs(cell);
        larger += above[c];
        above[c] += cell;
        total += cell;
      }
      x_groups.add(total);
    }
    for (int c = 0; c < columns; ++c) y_groups.add(above[c]);
    return make_counts(n, discordant, x_groups.pairs, y_groups.pairs, tied_both,
                       x_groups.distinct < y_groups.distinct ? x_groups.distinct : y_groups.distinct,
                       x_groups.triples, y_groups.triples);
  }

  KeyCodes<K> x_codes_, y_codes_;
  AlignedBuffer<uint32_t> cells_;
};

}  // namespace shfcas::SHFCAS_LEVEL
