#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

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
  double inverse;  // 1 / temperature

  template <class T>
  Positions<T> positions() const {
    return {const_data<T>(logits),
            const_data<int64_t>(labels),
            mask ? const_data<bool>(*mask) : nullptr,
            logits.size(0),
            logits.size(1),
            logits.size(2),
            logits.stride(0),
            logits.stride(1),
            inverse};
  }
};

Sequences make_sequences(const char* op, const Tensor& logits, const Tensor& labels,
                         const std::optional<Tensor>& mask, double temperature) {
  const ScalarType wide = check_logits(op, logits, labels, mask, temperature);
  Sequences sequences{logits.stride(2) == 1 ? logits : torch::stable::contiguous(logits),
                      torch::stable::contiguous(labels), std::nullopt, wide, 1 / temperature};
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

std::tuple<Tensor, Tensor, Tensor, Tensor> token_statistics(const Tensor& logits, const Tensor& labels,
                                                            const std::optional<Tensor>& mask,
                                                            double temperature, bool with_entropy) {
  const char* op = "token_logprobs";
  const DeviceScope device(op, "logits", logits);
  const Sequences sequences = make_sequences(op, logits, labels, mask, temperature);
  const std::vector<int64_t> positions{logits.size(0), logits.size(1)};
  const Tensor sums = torch::stable::new_empty(logits, {logits.size(0)}, sequences.wide);
  const Tensor logprobs = torch::stable::new_empty(logits, positions, sequences.wide);
  const Tensor entropy =
      torch::stable::new_empty(logits, with_entropy ? positions : std::vector<int64_t>{0}, sequences.wide);
  const Tensor normalizer =
      torch::stable::new_empty(logits, {logits.size(0), logits.size(1), 2}, ScalarType::Double);
  const Tensor exact = torch::stable::new_empty(logits, positions, ScalarType::Double);
  dispatch_logits(logits.scalar_type(), [&](auto number) {
    using T = decltype(number);
    using W = Wide<T>;
    const TokenResults<W> results{
        mutable_data<double>(exact), mutable_data<W>(sums), mutable_data<W>(logprobs),
        with_entropy ? mutable_data<W>(entropy) : nullptr, mutable_data<double>(normalizer)};
    launch_token_statistics(sequences.positions<T>(), results, device.current_stream());
  });
  check_launch(op);
  return {sums, logprobs, entropy, normalizer};
}

Tensor token_statistics_backward(const Tensor& gradient, const std::optional<Tensor>& entropy_gradient,
                                 const Tensor& logits, const Tensor& labels,
                                 const std::optional<Tensor>& mask, const std::optional<Tensor>& entropy,
                                 const Tensor& normalizer, double temperature) {
  const char* op = "token_statistics_backward";
  const DeviceScope device(op, "logits", logits);
  const Sequences sequences = make_sequences(op, logits, labels, mask, temperature);
  check_saved(op, normalizer, entropy, logits, entropy_gradient.has_value());
  const Tensor incoming = prepared_gradient(op, "gradient", gradient, logits);
  const Tensor saved = torch::stable::contiguous(normalizer);
  TokenGradients from{const_data<double>(incoming), nullptr, nullptr, const_data<double>(saved)};
  std::optional<Tensor> entropy_incoming, entropies;
  if (entropy_gradient) {
    entropy_incoming = prepared_gradient(op, "entropy_gradient", *entropy_gradient, logits);
    entropies = prepared(*entropy, ScalarType::Double);
    from.entropy_gradient = const_data<double>(*entropy_incoming);
    from.entropy = const_data<double>(*entropies);
  }
  const Tensor result = torch::stable::new_empty(logits, logits.sizes());
  dispatch_logits(logits.scalar_type(), [&](auto number) {
    using T = decltype(number);
    launch_token_gradients(sequences.positions<T>(), from, mutable_data<T>(result), device.current_stream());
  });
  check_launch(op);
  return result;
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CUDA, library) {
  library.impl("token_statistics", TORCH_BOX(&shfcas::token_statistics));
  library.impl("token_statistics_backward", TORCH_BOX(&shfcas::token_statistics_backward));
}
