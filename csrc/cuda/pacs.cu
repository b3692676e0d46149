#include <torch/csrc/stable/library.h>

#include <tuple>

#include "batch.h"
#include "core/pacs.h"
#include "cuda/launch.h"

namespace shfcas {
namespace {

template <class T>
struct PacsRow {
  const T *rewards, *logprobs;
  Rows rows;
  T* scores;

  template <class Team>
  __device__ void operator()(const Team& team, int64_t row) const {
    const int64_t first = rows.begin(row);
    write_pacs(team, rewards + first, logprobs + first, rows.size(row), scores + first);
  }
};

template <class T>
struct PacsGradientRow {
  const T *gradient, *rewards, *logprobs;
  Rows rows;
  T *to_rewards, *to_logprobs;

  template <class Team>
  __device__ void operator()(const Team& team, int64_t row) const {
    const int64_t first = rows.begin(row), n = rows.size(row);
    write_z_gradient(team, gradient + first, rewards + first, n, 1, to_rewards + first);
    write_z_gradient(team, gradient + first, logprobs + first, n, -1, to_logprobs + first);
  }
};

Tensor pacs(const Tensor& rewards, const Tensor& logprobs, const std::optional<Tensor>& offsets) {
  const DeviceScope device("pacs", "rewards", rewards);
  const Batch batch =
      make_batch("pacs", "rewards", rewards, "logprobs", logprobs, offsets, Numbers::floating);
  const Tensor result = batch.new_like_values();
  dispatch_floating(batch.dtype, [&](auto number) {
    using T = decltype(number);
    launch_rows(
        "pacs", batch.rows, device.current_stream(),
        PacsRow<T>{const_data<T>(batch.x), const_data<T>(batch.y), batch.rows, mutable_data<T>(result)});
  });
  return result;
}

std::tuple<Tensor, Tensor> pacs_backward(const Tensor& gradient, const Tensor& rewards,
                                         const Tensor& logprobs, const std::optional<Tensor>& offsets) {
  const DeviceScope device("pacs_backward", "rewards", rewards);
  const Batch batch =
      make_batch("pacs_backward", "rewards", rewards, "logprobs", logprobs, offsets, Numbers::floating);
  check_same_shape("pacs_backward", "gradient", gradient, "rewards", rewards);
  check_same_device("pacs_backward", "gradient", gradient, "rewards", rewards);
  const Tensor incoming = prepared(gradient, batch.dtype);
  const Tensor to_rewards = batch.new_like_values();
  const Tensor to_logprobs = batch.new_like_values();
  dispatch_floating(batch.dtype, [&](auto number) {
    using T = decltype(number);
    launch_rows("pacs_backward", batch.rows, device.current_stream(),
                PacsGradientRow<T>{const_data<T>(incoming), const_data<T>(batch.x), const_data<T>(batch.y),
                                   batch.rows, mutable_data<T>(to_rewards), mutable_data<T>(to_logprobs)});
  });
  return {to_rewards, to_logprobs};
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CUDA, library) {
  library.impl("pacs", TORCH_BOX(&shfcas::pacs));
  library.impl("pacs_backward", TORCH_BOX(&shfcas::pacs_backward));
}
