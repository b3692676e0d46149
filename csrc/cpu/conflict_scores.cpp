#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "batch.h"
#include "cpu/count_rows.h"
#include "cpu/kernels.h"

namespace shfcas {
namespace {

// Rows counted and then scored together: few enough to stay in the cache, enough to sort by length.
constexpr int64_t kBlockRows = 2048;

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
          RowCounter<T> counter(reward, logprob, rows, false);
          std::vector<PacsSummary> summaries(std::min(end - begin, kBlockRows));
          for (; begin < end; begin += kBlockRows) {
            const int64_t block_end = std::min(begin + kBlockRows, end);
            counter.run(begin, block_end, [&](int64_t row, int64_t n, const PairCounts& counts) {
              distance_out[row] = distance_from_counts(counts, n, true);
              tau_out[row] = tau_from_counts(counts, n, TauVariant::b);
            });
            kernels<T>().pacs_rows(reward, logprob, rows, begin, block_end, pacs_out, summaries.data());
            for (int64_t row = begin; row < block_end; ++row) {
              mean_abs_out[row] = static_cast<T>(summaries[row - begin].mean_abs);
              degenerate_out[row] = summaries[row - begin].degenerate;
            }
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
