// Pair counts of every row of a batch, computed on all threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/rows.h"
#include "cpu/block_statistics.h"
#include "cpu/grain.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace shfcas {

// Sinks receive the counts of every row once: rows one by one through row(row, n, counts), blocks of short
// rows through block(counts, n, lanes, row_of), where lane l belongs to row row_of(l).

// A sink that calls f(row, n, counts) for every row.
template <class F>
struct EachRow {
  F f;
  explicit EachRow(const F& function) : f(function) {}

  void row(int64_t row, int64_t n, const PairCounts& counts) const { f(row, n, counts); }

  template <class K, class RowOf>
  void block(const BlockCounts<K>& counts, int n, int lanes, const RowOf& row_of) const {
    for (int l = 0; l < lanes; ++l)
      f(row_of(l), n,
        counts.invalid[l]
            ? invalid_counts()
            : make_counts(n, counts.discordant[l], counts.tied_x[l], counts.tied_y[l], counts.tied_both[l]));
  }
};

// A sink for one number per row: value(n, counts) of a row, and values(counts, n, numbers) of a block.
template <class Value, class Values>
struct OneNumber {
  double* out;
  Value value;
  Values values;

  void row(int64_t row, int64_t n, const PairCounts& counts) const { out[row] = value(n, counts); }

  template <class K, class RowOf>
  void block(const BlockCounts<K>& counts, int n, int lanes, const RowOf& row_of) const {
    alignas(64) double numbers[kBlockLanes<K>];
    vectorize([&]() SHFCAS_INLINE_LAMBDA { values(counts, n, numbers); });
    for (int l = 0; l < lanes; ++l) out[row_of(l)] = numbers[l];
  }
};
template <class Value, class Values>
OneNumber(double*, Value, Values) -> OneNumber<Value, Values>;

template <class T>
class RowCounter {
  using K = Key<T>;

 public:
  RowCounter(const T* x, const T* y, const Rows& rows, bool with_classes)
      : x_(x), y_(y), rows_(rows), with_classes_(with_classes) {}

  // Gives the rows in [begin, end) to the sink.
  template <class Sink>
  void run(int64_t begin, int64_t end, const Sink& sink) {
    if (!rows_.offsets) {
      begin = run_dense_blocks(begin, end, sink);
      run_rows(begin, end, [](int64_t k) { return k; }, sink);
      return;
    }
    for (; begin < end; begin += kWindow) {
      const int64_t window_end = std::min(begin + kWindow, end);
      sort_by_length(begin, window_end);
      run_rows(0, window_end - begin, [&, begin](int64_t k) { return begin + order_[k]; }, sink);
    }
  }

 private:
  static constexpr int64_t kWindow = 4096;
  static constexpr int64_t kLongRows = kMaxBlockLength<K> + 1;  // bucket of the rows too long for a block

  // Counts whole blocks of dense rows in place; returns the first row that is left.
  template <class Sink>
  int64_t run_dense_blocks(int64_t begin, int64_t end, const Sink& sink) {
    const int64_t n = rows_.length;
    if (n == 0 || n > kMaxBlockLength<K> || with_classes_) return begin;
    int64_t offsets[kBlockLanes<K>];
    for (int l = 0; l < kBlockLanes<K>; ++l) offsets[l] = l * n;
    end = std::min(end, (rows_.total - kReadAhead) / n);
    // The values of the next block, which short rows need before the processor fetches them by itself.
    const int64_t prefetched = n <= 16 && simd_level() == SimdLevel::avx512 ? n * kBlockLanes<K> : 0;
    for (; begin + kBlockLanes<K> <= end; begin += kBlockLanes<K>) {
      for (int64_t i = 0; i < prefetched; i += 64 / static_cast<int64_t>(sizeof(T))) {
        __builtin_prefetch(x_ + (begin + kBlockLanes<K>)*n + i);
        __builtin_prefetch(y_ + (begin + kBlockLanes<K>)*n + i);
      }
      kernels_.count_block(x_ + begin * n, y_ + begin * n, offsets, static_cast<int>(n), block_);
      sink.block(block_, static_cast<int>(n), kBlockLanes<K>, [begin](int l) { return begin + l; });
    }
    return begin;
  }

  // Counts rows k in [begin, end) of the given order, in which rows of equal length are neighbours.
  template <class Order, class Sink>
  void run_rows(int64_t begin, int64_t end, const Order& order, const Sink& sink) {
    while (begin < end) {
      const int64_t n = rows_.size(order(begin));
      const int equal = equally_long(begin, end, n);
      // A few long rows would leave most lanes of a block idle.
      const bool as_block =
          n <= kMaxBlockLength<K> && !with_classes_ && (n <= 64 || equal > kBlockLanes<K> / 4);
      if (n == 0) {
        sink.row(order(begin++), 0, make_counts(0, 0, 0, 0, 0));
      } else if (as_block) {
        run_block(begin, equal, n, order, sink);
        begin += equal;
      } else {
        begin += run_long(begin, end, n, order, sink);
      }
    }
  }

  // Returns the number of rows of length n from `begin` on, up to a block. Sorted rows too long for a block
  // do not need it.
  int equally_long(int64_t begin, int64_t end, int64_t n) const {
    if (rows_.offsets) end = n <= kMaxBlockLength<K> ? first_[n + 1] : begin + 1;
    return static_cast<int>(std::min<int64_t>(kBlockLanes<K>, end - begin));
  }

  template <class Order, class Sink>
  void run_block(int64_t begin, int lanes, int64_t n, const Order& order, const Sink& sink) {
    const T *x = x_, *y = y_;
    int64_t offsets[kBlockLanes<K>], last = 0;
    for (int l = 0; l < kBlockLanes<K>; ++l) {
      offsets[l] = rows_.begin(order(begin + std::min(l, lanes - 1)));  // idle lanes repeat a row
      last = std::max(last, offsets[l]);
    }
    if (last + n + kReadAhead > rows_.total) {
      const int64_t pitch = n + kReadAhead;
      x_copy_.resize(kBlockLanes<K> * pitch);
      y_copy_.resize(kBlockLanes<K> * pitch);
      for (int l = 0; l < kBlockLanes<K>; ++l) {
        std::copy_n(x_ + offsets[l], n, x_copy_.begin() + l * pitch);
        std::copy_n(y_ + offsets[l], n, y_copy_.begin() + l * pitch);
        offsets[l] = l * pitch;
      }
      x = x_copy_.data();
      y = y_copy_.data();
    }
    kernels_.count_block(x, y, offsets, static_cast<int>(n), block_);
    sink.block(block_, static_cast<int>(n), lanes, [&](int l) { return order(begin + l); });
  }

  // Counts the rows from `begin` that are about as long as the first; returns their number.
  template <class Order, class Sink>
  int run_long(int64_t begin, int64_t end, int64_t n, const Order& order, const Sink& sink) {
    if (!long_rows_) long_rows_ = kernels_.make_long_row_counter(with_classes_);
    int64_t offsets[kWordLanes], sizes[kWordLanes];
    PairCounts counts[kWordLanes];
    int rows = 0;
    for (; rows < kWordLanes && begin + rows < end; ++rows) {
      const int64_t row = order(begin + rows);
      offsets[rows] = rows_.begin(row);
      sizes[rows] = rows_.size(row);
      if (sizes[rows] > n + n / 4) break;
    }
    long_rows_->count(x_, y_, offsets, sizes, rows, counts);
    for (int r = 0; r < rows; ++r) sink.row(order(begin + r), sizes[r], counts[r]);
    return rows;
  }

  // Orders a window of rows by length, so that rows of equal length fill the lanes of a block. This is a
  // counting sort with one bucket for all rows too long for a block. The window is small enough for its
  // values to stay in the cache.
  void sort_by_length(int64_t begin, int64_t end) {
    const int64_t* offsets = rows_.offsets + begin;  // checked: they never decrease
    const int64_t count = end - begin;
    buckets_.resize(count);
    order_.resize(count);
    for (int64_t k = 0; k < count; ++k)
      buckets_[k] = static_cast<uint16_t>(std::min<int64_t>(offsets[k + 1] - offsets[k], kLongRows));
    first_ = {};
    for (int64_t k = 0; k < count; ++k) ++first_[buckets_[k] + 1];
    for (size_t b = 1; b < first_.size(); ++b) first_[b] += first_[b - 1];
    auto next = first_;
    for (int64_t k = 0; k < count; ++k) order_[next[buckets_[k]]++] = static_cast<int32_t>(k);
    std::sort(order_.begin() + first_[kLongRows], order_.end(), [&](int32_t a, int32_t b) {
      const int64_t size_a = offsets[a + 1] - offsets[a], size_b = offsets[b + 1] - offsets[b];
      return size_a != size_b ? size_a < size_b : a < b;
    });
  }

  const T* x_;
  const T* y_;
  const Rows rows_;
  const bool with_classes_;
  const Kernels<T>& kernels_ = kernels<T>();
  BlockCounts<K> block_;
  std::vector<T> x_copy_, y_copy_;
  std::unique_ptr<LongRowCounter<T>> long_rows_;
  std::vector<uint16_t> buckets_;
  std::vector<int32_t> order_;                // rows of the window, by length
  std::array<int32_t, kLongRows + 2> first_;  // place in order_ of the first row of each bucket
};

// Gives every row to the sink, from any thread. with_classes also counts distinct values.
template <class T, class Sink>
void count_rows(const T* x, const T* y, const Rows& rows, bool with_classes, const Sink& sink) {
  torch::stable::parallel_for(0, rows.count, row_grain(counting_cost(rows)), [&](int64_t begin, int64_t end) {
    RowCounter<T>(x, y, rows, with_classes).run(begin, end, sink);
  });
}

}  // namespace shfcas
