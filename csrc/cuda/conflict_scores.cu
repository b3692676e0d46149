#include <torch/csrc/stable/library.h>

#include <tuple>

#include "batch.h"
#include "cuda/launch.h"
#include "cuda/pacs_kernels.cuh"

namespace shfcas {
namespace {

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
    const Tensor scratch = new_scratch(batch.x, kendall_scratch_bytes<T>(batch.rows));
    launch_conflict_scores(batch.rows, const_data<T>(batch.x), const_data<T>(batch.y), mutable_data<T>(pacs),
                           mutable_data<T>(mean_abs), mutable_data<bool>(degenerate),
                           mutable_data<double>(distance), mutable_data<double>(tau),
                           scratch.mutable_data_ptr(), device.current_stream());
  });
  check_launch("conflict_scores");
  return {pacs, mean_abs, distance, tau, degenerate};
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CUDA, library) {
  library.impl("conflict_scores", TORCH_BOX(&shfcas::conflict_scores));
}
