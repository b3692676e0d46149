#include <torch/csrc/stable/library.h>

#include <tuple>

#include "batch.h"
#include "cuda/launch.h"
#include "cuda/pacs_kernels.cuh"

namespace shfcas {
namespace {

Tensor pacs(const Tensor& rewards, const Tensor& logprobs, const std::optional<Tensor>& offsets) {
  const DeviceScope device("pacs", "rewards", rewards);
  const Batch batch =
      make_batch("pacs", "rewards", rewards, "logprobs", logprobs, offsets, Numbers::floating);
  const Tensor result = batch.new_like_values();
  dispatch_floating(batch.dtype, [&](auto number) {
    using T = decltype(number);
    launch_pacs(batch.rows, const_data<T>(batch.x), const_data<T>(batch.y), mutable_data<T>(result),
                device.current_stream());
  });
  check_launch("pacs");
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
    launch_pacs_gradient(batch.rows, const_data<T>(incoming), const_data<T>(batch.x), const_data<T>(batch.y),
                         mutable_data<T>(to_rewards), mutable_data<T>(to_logprobs), device.current_stream());
  });
  check_launch("pacs_backward");
  return {to_rewards, to_logprobs};
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CUDA, library) {
  library.impl("pacs", TORCH_BOX(&shfcas::pacs));
  library.impl("pacs_backward", TORCH_BOX(&shfcas::pacs_backward));
}
