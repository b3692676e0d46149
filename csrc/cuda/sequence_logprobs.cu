#include <torch/csrc/stable/library.h>

#include "cuda/launch.h"
#include "cuda/logprob_kernels.cuh"
#include "logits.h"

namespace shfcas {
namespace {

// Checked arguments. Logits are copied only if the values of a position are not consecutive.
struct Sequences {
  Tensor logits;
  Tensor labels;
  std::optional<Tensor> mask;
  ScalarType wide;

  template <class T>
  Positions<T> positions() const {
    return {const_data<T>(logits),
            const_data<int64_t>(labels),
            mask ? const_data<bool>(*mask) : nullptr,
            logits.size(0),
            logits.size(1),
            logits.size(2),
            logits.stride(0),
            logits.stride(1)};
  }
};

Sequences make_sequences(const char* op, const Tensor& logits, const Tensor& labels,
                         const std::optional<Tensor>& mask) {
  const ScalarType wide = check_logits(op, logits, labels, mask);
  Sequences sequences{logits.stride(2) == 1 ? logits : torch::stable::contiguous(logits),
                      torch::stable::contiguous(labels), std::nullopt, wide};
  if (mask) sequences.mask = torch::stable::contiguous(*mask);
  return sequences;
}

template <class F>
void dispatch_logits(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Half)
    f(__half{});
  else if (dtype == ScalarType::BFloat16)
    f(__nv_bfloat16{});
  else
    dispatch_floating(dtype, f);
}

Tensor sequence_logprobs(const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& mask) {
  const DeviceScope device("sequence_logprobs", "logits", logits);
  const Sequences sequences = make_sequences("sequence_logprobs", logits, labels, mask);
  const Tensor result = torch::stable::new_empty(logits, {logits.size(0)}, sequences.wide);
  const Tensor of_positions =
      torch::stable::new_empty(logits, {logits.size(0), logits.size(1)}, ScalarType::Double);
  dispatch_logits(logits.scalar_type(), [&](auto number) {
    using T = decltype(number);
    launch_sequence_logprobs(sequences.positions<T>(), mutable_data<double>(of_positions),
                             mutable_data<Wide<T>>(result), device.current_stream());
  });
  check_launch("sequence_logprobs");
  return result;
}

Tensor sequence_logprobs_backward(const Tensor& gradient, const Tensor& logits, const Tensor& labels,
                                  const std::optional<Tensor>& mask) {
  const char* op = "sequence_logprobs_backward";
  const DeviceScope device(op, "logits", logits);
  const Sequences sequences = make_sequences(op, logits, labels, mask);
  check_sequence_gradient(op, gradient, logits);
  const Tensor incoming = prepared(gradient, sequences.wide);
  const Tensor result = torch::stable::new_empty(logits, logits.sizes());
  dispatch_logits(logits.scalar_type(), [&](auto number) {
    using T = decltype(number);
    launch_sequence_logprobs_gradient(sequences.positions<T>(), const_data<Wide<T>>(incoming),
                                      mutable_data<T>(result), device.current_stream());
  });
  check_launch(op);
  return result;
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CUDA, library) {
  library.impl("sequence_logprobs", TORCH_BOX(&shfcas::sequence_logprobs));
  library.impl("sequence_logprobs_backward", TORCH_BOX(&shfcas::sequence_logprobs_backward));
}
