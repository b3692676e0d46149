// Pair counts of every row of a batch, computed on all threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/rows.h"
#include "cpu/grain.h"
#include "cpu/kernels.h"

namespace shfcas {

template <class T>
class RowCounter {
  using K = Key<T>;

 public:
  RowCounter(const T* x, const T* y, const Rows& rows, bool with_classes)
      : x_(x), y_(y), rows_(rows), with_classes_(with_classes) {}

  // Calls sink(row, n, counts) once for each row in [begin, end).
  template <class Sink>
  void run(int64_t begin, int64_t end, const Sink& sink) {
    if (!rows_.offsets) {
      run_rows(begin, end, [](int64_t k) { return k; }, sink);
      return;
    }
    for (; begin < end; begin += kWindow) {
      const int64_t window_end = std::min(begin + kWindow, end);
      sort_by_length(begin, window_end);
      run_rows(0, window_end - begin, [&](int64_t k) { return order_[k]; }, sink);
    }
  }

 private:
  static constexpr int64_t kWindow = 4096;

  // Counts rows k in [begin, end) of the given order, in which rows of equal length are neighbours.
  template <class Order, class Sink>
  void run_rows(int64_t begin, int64_t end, const Order& order, const Sink& sink) {
    while (begin < end) {
      const int64_t n = rows_.size(order(begin));
      const int equal = equally_long(begin, end, order, n);
      // A few long rows would leave most lanes of a block idle.
      const bool as_block =
          n <= kMaxBlockLength<K> && !with_classes_ && (n <= 64 || equal > kBlockLanes<K> / 4);
      if (n == 0) {
        sink(order(begin++), 0, make_counts(0, 0, 0, 0, 0));
      } else if (as_block) {
        run_block(begin, equal, n, order, sink);
        begin += equal;
      } else {
        begin += run_long(begin, end, n, order, sink);
      }
    }
  }

  template <class Order>
  int equally_long(int64_t begin, int64_t end, const Order& order, int64_t n) const {
    const int most = static_cast<int>(std::min<int64_t>(kBlockLanes<K>, end - begin));
    if (!rows_.offsets) return most;
    int count = 1;
    while (count < most && rows_.size(order(begin + count)) == n) ++count;
    return count;
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
    for (int l = 0; l < lanes; ++l)
      sink(order(begin + l), n,
           block_.invalid[l] ? invalid_counts()
                             : make_counts(n, block_.discordant[l], block_.tied_x[l], block_.tied_y[l],
                                           block_.tied_both[l]));
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
    for (int r = 0; r < rows; ++r) sink(order(begin + r), sizes[r], counts[r]);
    return rows;
  }

  // Orders a window of rows by length, so that rows of equal length fill the lanes of a block. This is a
  // counting sort with one bucket for all rows too long for a block. The window is small enough for its
  // values to stay in the cache.
  void sort_by_length(int64_t begin, int64_t end) {
    constexpr int64_t last_bucket = kMaxBlockLength<K> + 1;
    std::array<int64_t, last_bucket + 2> next{};
    const auto bucket = [&](int64_t row) { return std::min(rows_.size(row), last_bucket); };
    for (int64_t row = begin; row < end; ++row) ++next[bucket(row) + 1];
    for (size_t b = 1; b < next.size(); ++b) next[b] += next[b - 1];
    order_.resize(end - begin);
    const int64_t first_long = next[last_bucket];
    for (int64_t row = begin; row < end; ++row) order_[next[bucket(row)]++] = row;
    std::sort(order_.begin() + first_long, order_.end(), [&](int64_t a, int64_t b) {
      const int64_t size_a = rows_.size(a), size_b = rows_.size(b);
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
  std::vector<int64_t> order_;
};

// Calls sink(row, n, counts) once per row, from any thread. with_classes also counts distinct values.
template <class T, class Sink>
void count_rows(const T* x, const T* y, const Rows& rows, bool with_classes, const Sink& sink) {
  torch::stable::parallel_for(0, rows.count, row_grain(counting_cost(rows)), [&](int64_t begin, int64_t end) {
    RowCounter<T>(x, y, rows, with_classes).run(begin, end, sink);
  });
}

}  // namespace shfcas
