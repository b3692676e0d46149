// Pair counts of every row of a batch, on all threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "core/rows.h"
#include "cpu/grain.h"
#include "cpu/pair_block.h"
#include "cpu/sort_counter.h"

namespace shfcas {

template <class T>
class RowCounter {
 public:
  RowCounter(const T* x, const T* y, const Rows& rows, bool with_classes)
      : x_(x), y_(y), rows_(rows), with_classes_(with_classes) {}

  // Calls sink(row, n, counts) once for each row in [begin, end).
  template <class Sink>
  void run(int64_t begin, int64_t end, const Sink& sink) {
    if (!rows_.offsets) {
      run_rows(begin, end, [](int64_t k) { return k; }, sink);
    } else {
      sort_by_length(begin, end);
      run_rows(0, end - begin, [&](int64_t k) { return order_[k]; }, sink);
    }
  }

 private:
  // Rows k in [begin, end) of the given order. Neighbours of equal length share a block.
  template <class Order, class Sink>
  void run_rows(int64_t begin, int64_t end, const Order& order, const Sink& sink) {
    while (begin < end) {
      const int64_t n = rows_.size(order(begin));
      if (n > kMaxBlockLength || with_classes_) {
        const int64_t row = order(begin++);
        sink(row, n, sorted_.count(x_ + rows_.begin(row), y_ + rows_.begin(row), n));
        continue;
      }
      int lanes = 0;
      while (lanes < PairBlock<T>::kLanes && begin + lanes < end && rows_.size(order(begin + lanes)) == n)
        ++lanes;
      vectorize([&](auto width) SHFCAS_INLINE_LAMBDA {
        for (int lane = 0; lane < lanes; ++lane) {
          const int64_t first = rows_.begin(order(begin + lane));
          block_.set_row(lane, x_ + first, y_ + first, n);
        }
        block_.count(width, n, counts_);
      });
      for (int lane = 0; lane < lanes; ++lane) sink(order(begin + lane), n, counts_[lane]);
      begin += lanes;
    }
  }

  // Rows of different length lie in any order; by length, they fill the lanes of a block. A counting sort,
  // with one bucket for all rows that a block does not take.
  void sort_by_length(int64_t begin, int64_t end) {
    std::array<int64_t, kMaxBlockLength + 3> next{};
    const auto bucket = [&](int64_t row) { return std::min(rows_.size(row), kMaxBlockLength + 1); };
    for (int64_t row = begin; row < end; ++row) ++next[bucket(row) + 1];
    for (size_t b = 1; b < next.size(); ++b) next[b] += next[b - 1];
    order_.resize(end - begin);
    for (int64_t row = begin; row < end; ++row) order_[next[bucket(row)]++] = row;
  }

  const T* x_;
  const T* y_;
  const Rows rows_;
  const bool with_classes_;
  PairBlock<T> block_;
  std::array<PairCounts, PairBlock<T>::kLanes> counts_;
  SortCounter<Key<T>> sorted_;
  std::vector<int64_t> order_;
};

// Calls sink(row, n, counts) once for each row, from any thread. with_classes also counts distinct values.
template <class T, class Sink>
void count_rows(const T* x, const T* y, const Rows& rows, bool with_classes, const Sink& sink) {
  torch::stable::parallel_for(0, rows.count, row_grain(counting_cost(rows)), [&](int64_t begin, int64_t end) {
    RowCounter<T>(x, y, rows, with_classes).run(begin, end, sink);
  });
}

}  // namespace shfcas
