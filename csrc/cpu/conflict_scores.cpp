#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "batch.h"
#include "cpu/count_rows.h"
#include "cpu/kernels.h"

namespace shfcas {
namespace {

// Rows counted and then scored together: few enough to stay in the cache, enough to sort by length.
constexpr int64_t kBlockRows = 2048;

struct DistanceAndTau {
  double *distance, *tau;

  void row(int64_t row, int64_t n, const PairCounts& counts) const {
    distance[row] = distance_from_counts(counts, n, true);
    tau[row] = tau_from_counts(counts, n, TauVariant::b);
  }

  template <class K, class RowOf>
  void block(const BlockCounts<K>& counts, int n, int lanes, const RowOf& row_of) const {
    alignas(64) double distances[kBlockLanes<K>], taus[kBlockLanes<K>];
    vectorize([&]() SHFCAS_INLINE_LAMBDA {
      block_distance(counts, n, true, distances);
      block_tau(counts, n, TauVariant::b, taus);
    });
    for (int l = 0; l < lanes; ++l) {
      distance[row_of(l)] = distances[l];
      tau[row_of(l)] = taus[l];
    }
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conflict_scores(const Tensor& rewards,
                                                                   const Tensor& logprobs,
                                                                   const std::optional<Tensor>& offsets) {
  const Batch batch =
      make_batch("conflict_scores", "rewards", rewards, "logprobs", logprobs, offsets, Numbers::floating);
  const Tensor pacs = batch.new_like_values();
  const Tensor mean_abs = batch.new_per_row(batch.dtype);
  const Tensor distance = batch.new_per_row(ScalarType::Double);
  const Tensor tau = batch.new_per_row(ScalarType::Double);
  const Tensor degenerate = batch.new_per_row(ScalarType::Bool);
  double *distance_out = mutable_data<double>(distance), *tau_out = mutable_data<double>(tau);
  bool* degenerate_out = mutable_data<bool>(degenerate);
  dispatch_floating(batch.dtype, [&](auto number) {
    using T = decltype(number);
    const T *reward = const_data<T>(batch.x), *logprob = const_data<T>(batch.y);
    T *pacs_out = mutable_data<T>(pacs), *mean_abs_out = mutable_data<T>(mean_abs);
    const Rows rows = batch.rows;
    torch::stable::parallel_for(
        0, rows.count, row_grain(counting_cost(rows)), [&](int64_t begin, int64_t end) {
          if (!rows.offsets && has_conflict_blocks(rows.length)) {
            const int64_t blocks = (end - begin) / kBlockLanes<Key<T>>, first = begin * rows.length;
            kernels<T>().conflict_blocks(reward + first, logprob + first, static_cast<int>(rows.length),
                                         blocks, pacs_out + first, mean_abs_out + begin,
                                         degenerate_out + begin, distance_out + begin, tau_out + begin);
            begin += blocks * kBlockLanes<Key<T>>;
          }
          RowCounter<T> counter(reward, logprob, rows, false);
          for (; begin < end; begin += kBlockRows) {
            const int64_t block_end = std::min(begin + kBlockRows, end);
            counter.run(begin, block_end, DistanceAndTau{distance_out, tau_out});
            kernels<T>().pacs_rows(reward, logprob, rows, begin, block_end, pacs_out, mean_abs_out + begin,
                                   degenerate_out + begin);
          }
        });
  });
  return {pacs, mean_abs, distance, tau, degenerate};
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CPU, library) {
  library.impl("conflict_scores", TORCH_BOX(&shfcas::conflict_scores));
}
