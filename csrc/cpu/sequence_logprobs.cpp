// Log-probabilities of label sequences under given logits, and their gradient.
//
//   logits (B, T, V), any strides; labels (B, T); mask (B, T) or none
//   forward:  out[b] = sum over t with mask[b, t] of log_softmax(logits[b, t])[labels[b, t]]
//   backward: out[b, t, v] = gradient[b] ((v == labels[b, t]) - softmax(logits[b, t])[v]),
//             or 0 where mask[b, t] is false
//
// A row of V logits is read from memory once, block by block; the second pass over a block reads the cache.
// Sums are float within a block and double across blocks.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "batch.h"
#include "cpu/exp.h"
#include "cpu/grain.h"
#include "cpu/simd.h"
#include "logits.h"

namespace shfcas {
namespace {

constexpr int64_t kBlock = 1024;
// Number of partial sums of a block, each in order. Short sums round little, and the result is the same for
// every register width.
constexpr int64_t kLanes = 32;

// Checked arguments: the logits, label and mask of each position.
struct Positions {
  int64_t sequences, length, vocabulary;
  int64_t strides[3];  // strides of the logits
  Tensor labels_owner;
  std::optional<Tensor> mask_owner;
  const int64_t* labels;
  const bool* mask;  // null: every position counts

  int64_t count() const { return sequences * length; }
  bool counts(int64_t position) const { return !mask || mask[position]; }
  int64_t offset(int64_t position) const {
    return position / length * strides[0] + position % length * strides[1];
  }
};

Positions make_positions(const char* op, const Tensor& logits, const Tensor& labels,
                         const std::optional<Tensor>& mask) {
  check_logits(op, logits, labels, mask);

  Positions positions{logits.size(0),
                      logits.size(1),
                      logits.size(2),
                      {logits.stride(0), logits.stride(1), logits.stride(2)},
                      torch::stable::contiguous(labels),
                      std::nullopt,
                      nullptr,
                      nullptr};
  positions.labels = const_data<int64_t>(positions.labels_owner);
  if (mask) {
    positions.mask_owner = torch::stable::contiguous(*mask);
    positions.mask = const_data<bool>(*positions.mask_owner);
  }
  for (int64_t i = 0; i < positions.count(); ++i) {
    const int64_t label = positions.labels[i];
    if (positions.counts(i) && (label < 0 || label >= positions.vocabulary))
      fail(op, "labels",
           "values in [0, " + std::to_string(positions.vocabulary) + ") where the mask counts them",
           std::to_string(label) + " at [" + std::to_string(i / positions.length) + ", " +
               std::to_string(i % positions.length) + "]");
  }
  return positions;
}

// Returns n logits as consecutive numbers of the compute type: in place if possible, else in the buffer.
template <class T, class Stored>
SHFCAS_INLINE const T* load_block(const Stored* logits, int64_t stride, int64_t n, T* buffer) {
  if (stride != 1) {
    for (int64_t i = 0; i < n; ++i) buffer[i] = static_cast<T>(logits[i * stride]);
    return buffer;
  }
  if constexpr (std::is_same_v<T, Stored>) {
    return logits;
  } else {
    for (int64_t i = 0; i < n; ++i) buffer[i] = static_cast<T>(logits[i]);
    return buffer;
  }
}

// log(sum_v exp(logit_v)) = shift + log(sum), where sum is the sum of exp(logit_v - shift).
template <class T>
struct LogSumExp {
  T shift;
  double sum;
};

template <class T, class Stored>
SHFCAS_INLINE LogSumExp<T> log_sum_exp(const Stored* logits, int64_t stride, int64_t n) {
  alignas(64) T buffer[kBlock];
  T highest = -std::numeric_limits<T>::infinity();
  T shift = 0;  // the highest logit, or 0 while that is -inf: -inf - -inf is NaN
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t size = std::min(kBlock, n - begin);
    const T* block = load_block(logits + begin * stride, stride, size, buffer);
    T block_highest = highest;
#pragma omp simd reduction(max : block_highest)
    for (int64_t i = 0; i < size; ++i) block_highest = block[i] > block_highest ? block[i] : block_highest;
    if (block_highest > highest) {
      sum *= static_cast<double>(exp_nonpositive(highest - block_highest));
      highest = shift = block_highest;
    }
    T sums[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += exp_nonpositive(block[i + lane] - shift);
    }
    for (int64_t lane = 0; i < size; ++i, ++lane) sums[lane] += exp_nonpositive(block[i] - shift);
    T block_sum = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) block_sum += sums[lane];
    sum += static_cast<double>(block_sum);
  }
  return {shift, sum};
}

// Not inlined into the loop over positions: one copy per type, shared with the gradient.
template <class T, class Stored>
__attribute__((noinline)) double label_logprob(const Stored* logits, int64_t stride, int64_t n,
                                               int64_t label) {
  LogSumExp<T> total;
  vectorize([&]() SHFCAS_INLINE_LAMBDA { total = log_sum_exp<T>(logits, stride, n); });
  const T logit = static_cast<T>(logits[label * stride]);
  return static_cast<double>(logit) - static_cast<double>(total.shift) - std::log(total.sum);
}

template <class T, class Stored>
__attribute__((noinline)) void write_gradient(const Stored* logits, int64_t stride, int64_t n, int64_t label,
                                              double gradient, Stored* out) {
  vectorize([&]() SHFCAS_INLINE_LAMBDA {
    const LogSumExp<T> total = log_sum_exp<T>(logits, stride, n);
    const T scale = static_cast<T>(-gradient / total.sum);
    alignas(64) T buffer[kBlock];
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t size = std::min(kBlock, n - begin);
      const T* block = load_block(logits + begin * stride, stride, size, buffer);
      for (int64_t i = 0; i < size; ++i)
        out[begin + i] = static_cast<Stored>(scale * exp_nonpositive(block[i] - total.shift));
    }
    const T at_label = static_cast<T>(logits[label * stride]);
    out[label] = static_cast<Stored>(static_cast<T>(gradient) +
                                     scale * static_cast<T>(exp_nonpositive(at_label - total.shift)));
  });
}

// Calls f with values of two C++ types: the storage type of this dtype, and the type of its sums.
template <class F>
void dispatch_logits(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Double)
    f(double{}, double{});
  else if (dtype == ScalarType::Float)
    f(float{}, float{});
  else if (dtype == ScalarType::Half)
    f(c10::Half{}, float{});
  else
    f(c10::BFloat16{}, float{});
}

// Calls f(position) for each position, in parallel.
template <class F>
void for_each_position(const Positions& positions, const F& f) {
  torch::stable::parallel_for(0, positions.count(), row_grain(8 * positions.vocabulary),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i) f(i);
                              });
}

Tensor sequence_logprobs(const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& mask) {
  const Positions positions = make_positions("sequence_logprobs", logits, labels, mask);
  std::vector<double> logprobs(positions.count());
  dispatch_logits(logits.scalar_type(), [&](auto stored, auto number) {
    using Stored = decltype(stored);
    using T = decltype(number);
    const auto* data = static_cast<const Stored*>(logits.const_data_ptr());
    for_each_position(positions, [&](int64_t i) {
      if (positions.counts(i))
        logprobs[i] = label_logprob<T>(data + positions.offset(i), positions.strides[2], positions.vocabulary,
                                       positions.labels[i]);
    });
  });

  const ScalarType dtype =
      logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor result = torch::stable::new_empty(logits, {positions.sequences}, dtype);
  dispatch_floating(dtype, [&](auto number) {
    using T = decltype(number);
    T* out = mutable_data<T>(result);
    for (int64_t b = 0; b < positions.sequences; ++b) {
      double sum = 0;  // in the order of the positions, for any number of threads
      for (int64_t t = 0; t < positions.length; ++t) sum += logprobs[b * positions.length + t];
      out[b] = static_cast<T>(sum);
    }
  });
  return result;
}

Tensor sequence_logprobs_backward(const Tensor& gradient, const Tensor& logits, const Tensor& labels,
                                  const std::optional<Tensor>& mask) {
  const char* op = "sequence_logprobs_backward";
  const Positions positions = make_positions(op, logits, labels, mask);
  check_sequence_gradient(op, gradient, logits);
  const Tensor incoming = prepared(gradient, ScalarType::Double);
  const double* in = const_data<double>(incoming);
  const Tensor result = torch::stable::new_empty(logits, logits.sizes());
  dispatch_logits(logits.scalar_type(), [&](auto stored, auto number) {
    using Stored = decltype(stored);
    using T = decltype(number);
    const auto* data = static_cast<const Stored*>(logits.const_data_ptr());
    auto* out = static_cast<Stored*>(result.mutable_data_ptr());
    const int64_t n = positions.vocabulary;
    for_each_position(positions, [&](int64_t i) {
      if (positions.counts(i))
        write_gradient<T>(data + positions.offset(i), positions.strides[2], n, positions.labels[i],
                          in[i / positions.length], out + i * n);
      else
        std::fill_n(out + i * n, n, Stored(0));
    });
  });
  return result;
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CPU, library) {
  library.impl("sequence_logprobs", TORCH_BOX(&shfcas::sequence_logprobs));
  library.impl("sequence_logprobs_backward", TORCH_BOX(&shfcas::sequence_logprobs_backward));
}
