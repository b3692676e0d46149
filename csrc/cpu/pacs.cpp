#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "batch.h"
#include "core/team.h"
#include "cpu/grain.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace shfcas {
namespace {

Tensor pacs(const Tensor& rewards, const Tensor& logprobs, const std::optional<Tensor>& offsets) {
  const Batch batch =
      make_batch("pacs", "rewards", rewards, "logprobs", logprobs, offsets, Numbers::floating);
  const Tensor result = batch.new_like_values();
  const Rows rows = batch.rows;
  dispatch_floating(batch.dtype, [&](auto number) {
    using T = decltype(number);
    const T* reward = const_data<T>(batch.x);
    const T* logprob = const_data<T>(batch.y);
    T* out = mutable_data<T>(result);
    torch::stable::parallel_for(
        0, rows.count, row_grain(scoring_cost(rows)), [&](int64_t begin, int64_t end) {
          kernels<T>().pacs_rows(reward, logprob, rows, begin, end, out, nullptr, nullptr);
        });
  });
  return result;
}

std::tuple<Tensor, Tensor> pacs_backward(const Tensor& gradient, const Tensor& rewards,
                                         const Tensor& logprobs, const std::optional<Tensor>& offsets) {
  const Batch batch =
      make_batch("pacs_backward", "rewards", rewards, "logprobs", logprobs, offsets, Numbers::floating);
  check_same_shape("pacs_backward", "gradient", gradient, "rewards", rewards);
  check_same_device("pacs_backward", "gradient", gradient, "rewards", rewards);
  const Tensor incoming = prepared(gradient, batch.dtype);
  const Tensor to_rewards = batch.new_like_values();
  const Tensor to_logprobs = batch.new_like_values();
  const Rows rows = batch.rows;
  dispatch_floating(batch.dtype, [&](auto number) {
    using T = decltype(number);
    const T *reward = const_data<T>(batch.x), *logprob = const_data<T>(batch.y);
    const T* in = const_data<T>(incoming);
    T *reward_out = mutable_data<T>(to_rewards), *logprob_out = mutable_data<T>(to_logprobs);
    torch::stable::parallel_for(
        0, rows.count, row_grain(scoring_cost(rows)), [&](int64_t begin, int64_t end) {
          vectorize([&]() SHFCAS_INLINE_LAMBDA {
            for (int64_t row = begin; row < end; ++row) {
              const int64_t first = rows.begin(row), n = rows.size(row);
              write_z_gradient(SerialTeam{}, in + first, reward + first, n, 1, reward_out + first);
              write_z_gradient(SerialTeam{}, in + first, logprob + first, n, -1, logprob_out + first);
            }
          });
        });
  });
  return {to_rewards, to_logprobs};
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CPU, library) {
  library.impl("pacs", TORCH_BOX(&shfcas::pacs));
  library.impl("pacs_backward", TORCH_BOX(&shfcas::pacs_backward));
}
