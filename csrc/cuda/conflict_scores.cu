#include <torch/csrc/stable/library.h>

#include <tuple>

#include "batch.h"
#include "core/pacs.h"
#include "core/pair_counts.h"
#include "cuda/launch.h"

namespace shfcas {
namespace {

template <class T>
struct ConflictRow {
  const T *rewards, *logprobs;
  Rows rows;
  T *pacs, *mean_abs;
  double *distance, *tau;
  bool* degenerate;

  template <class Team>
  __device__ void operator()(const Team& team, int64_t row) const {
    const int64_t first = rows.begin(row), n = rows.size(row);
    const PairCounts counts = count_pairs(team, rewards + first, logprobs + first, n);
    const PacsSummary summary = write_pacs(team, rewards + first, logprobs + first, n, pacs + first);
    if (team.rank() != 0) return;
    mean_abs[row] = static_cast<T>(summary.mean_abs);
    degenerate[row] = summary.degenerate;
    distance[row] = distance_from_counts(counts, n, true);
    tau[row] = tau_from_counts(counts, n, TauVariant::b);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conflict_scores(const Tensor& rewards,
                                                                   const Tensor& logprobs,
                                                                   const std::optional<Tensor>& offsets) {
  const DeviceScope device("conflict_scores", "rewards", rewards);
  const Batch batch =
      make_batch("conflict_scores", "rewards", rewards, "logprobs", logprobs, offsets, Numbers::floating);
  const Tensor pacs = batch.new_like_values();
  const Tensor mean_abs = batch.new_per_row(batch.dtype);
  const Tensor distance = batch.new_per_row(ScalarType::Double);
  const Tensor tau = batch.new_per_row(ScalarType::Double);
  const Tensor degenerate = batch.new_per_row(ScalarType::Bool);
  dispatch_floating(batch.dtype, [&](auto number) {
    using T = decltype(number);
    launch_rows(
        "conflict_scores", batch.rows, device.current_stream(),
        ConflictRow<T>{const_data<T>(batch.x), const_data<T>(batch.y), batch.rows, mutable_data<T>(pacs),
                       mutable_data<T>(mean_abs), mutable_data<double>(distance), mutable_data<double>(tau),
                       mutable_data<bool>(degenerate)});
  });
  return {pacs, mean_abs, distance, tau, degenerate};
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CUDA, library) {
  library.impl("conflict_scores", TORCH_BOX(&shfcas::conflict_scores));
}
