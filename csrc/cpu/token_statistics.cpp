// Log-probabilities of labels under given logits, entropies, and their gradients.
//
//   logits (B, T, V), any strides; labels (B, T); mask (B, T) or none; x = logits / temperature
//   logprobs[b, t]   = log_softmax(x[b, t])[labels[b, t]], or 0 where mask[b, t] is false
//   entropy[b, t]    = -sum_v p_v log p_v with p = softmax(x[b, t]), or 0
//   sums[b]          = sum over t of logprobs[b, t]
//   normalizer[b, t] = (highest x, sum_v exp(x_v - highest)), which the gradient needs
//   gradient         = (g ((v == label) - p_v) - h p_v (log p_v + entropy)) / temperature, or 0, where g and
//   h
//                      are the gradients of logprobs and entropy
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
#include <tuple>
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
  double inverse;      // 1 / temperature
  Tensor labels_owner;
  std::optional<Tensor> mask_owner;
  const int64_t* labels;
  const bool* mask;  // null: every position counts

  int64_t count() const { return sequences * length; }
  bool counts(int64_t position) const { return !mask || mask[position]; }
  bool has_label(int64_t position) const { return labels[position] >= 0 && labels[position] < vocabulary; }
  int64_t offset(int64_t position) const {
    return position / length * strides[0] + position % length * strides[1];
  }
};

Positions make_positions(const char* op, const Tensor& logits, const Tensor& labels,
                         const std::optional<Tensor>& mask, double temperature) {
  check_logits(op, logits, labels, mask, temperature);

  Positions positions{logits.size(0),  logits.size(1),
                      logits.size(2),  {logits.stride(0), logits.stride(1), logits.stride(2)},
                      1 / temperature, torch::stable::contiguous(labels),
                      std::nullopt,    nullptr,
                      nullptr};
  positions.labels = const_data<int64_t>(positions.labels_owner);
  if (mask) {
    positions.mask_owner = torch::stable::contiguous(*mask);
    positions.mask = const_data<bool>(*positions.mask_owner);
  }
  return positions;
}

void check_labels(const char* op, const Positions& positions) {
  for (int64_t i = 0; i < positions.count(); ++i)
    if (positions.counts(i) && !positions.has_label(i))
      fail(op, "labels",
           "values in [0, " + std::to_string(positions.vocabulary) + ") where the mask counts them",
           std::to_string(positions.labels[i]) + " at [" + std::to_string(i / positions.length) + ", " +
               std::to_string(i % positions.length) + "]");
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

// Sums over a row. log(sum_v exp(x_v)) = shift + log(sum).
template <class T>
struct RowSums {
  T shift = 0;          // the highest x, or 0 while that is -inf: -inf - -inf is NaN
  double sum = 0;       // of exp(x - shift)
  double weighted = 0;  // of exp(x - shift) (x - shift), for the entropy

  double entropy() const { return std::log(sum) - weighted / sum; }
};

template <bool kEntropy, class T, class Stored>
SHFCAS_INLINE RowSums<T> sum_row(const Stored* logits, int64_t stride, int64_t n, T inverse) {
  alignas(64) T buffer[kBlock];
  T highest = -std::numeric_limits<T>::infinity();  // of the logits
  RowSums<T> row;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t size = std::min(kBlock, n - begin);
    const T* block = load_block(logits + begin * stride, stride, size, buffer);
    T block_highest = highest;
#pragma omp simd reduction(max : block_highest)
    for (int64_t i = 0; i < size; ++i) block_highest = block[i] > block_highest ? block[i] : block_highest;
    if (block_highest > highest) {
      const T shift = block_highest * inverse;
      if (row.sum != 0) {  // also NaN
        const double scale = static_cast<double>(exp_nonpositive(row.shift - shift));
        if (kEntropy)
          row.weighted = scale * (row.weighted + row.sum * static_cast<double>(row.shift - shift));
        row.sum *= scale;
      }
      highest = block_highest;
      row.shift = shift;
    }
    T sums[kLanes] = {}, weighted[kLanes] = {};
    const auto add = [&](int64_t i, int64_t lane) SHFCAS_INLINE_LAMBDA {
      const T x = block[i] * inverse - row.shift, weight = exp_nonpositive(x);
      sums[lane] += weight;
      if (kEntropy) weighted[lane] += weight > 0 ? weight * x : 0;  // 0 log 0 is 0
    };
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
    }
    for (int64_t lane = 0; i < size; ++i, ++lane) add(i, lane);
    T block_sum = 0, block_weighted = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      block_sum += sums[lane];
      block_weighted += weighted[lane];
    }
    row.sum += static_cast<double>(block_sum);
    row.weighted += static_cast<double>(block_weighted);
  }
  return row;
}

// Not inlined into the loop over positions: one copy per type.
template <bool kEntropy, class T, class Stored>
__attribute__((noinline)) RowSums<T> read_row(const Stored* logits, int64_t stride, int64_t n, T inverse) {
  RowSums<T> row;
  vectorize([&]() SHFCAS_INLINE_LAMBDA { row = sum_row<kEntropy, T>(logits, stride, n, inverse); });
  return row;
}

// The gradient of a row is exp(x - shift) (constant + slope (x - shift)), plus at_label at the label.
template <class T>
struct RowGradient {
  T inverse, shift, constant, slope, at_label;
  int64_t label;  // negative: none in this row
};

template <bool kEntropy, class T, class Stored>
__attribute__((noinline)) void write_gradient(const Stored* logits, int64_t stride, int64_t n,
                                              const RowGradient<T>& row, Stored* out) {
  const auto value = [&](T logit) SHFCAS_INLINE_LAMBDA {
    const T x = logit * row.inverse - row.shift, weight = exp_nonpositive(x);
    if constexpr (!kEntropy) return row.constant * weight;
    return weight * (row.constant + row.slope * (weight == 0 ? 0 : x));
  };
  vectorize([&]() SHFCAS_INLINE_LAMBDA {
    alignas(64) T buffer[kBlock];
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t size = std::min(kBlock, n - begin);
      const T* block = load_block(logits + begin * stride, stride, size, buffer);
      for (int64_t i = 0; i < size; ++i) out[begin + i] = static_cast<Stored>(value(block[i]));
    }
    if (row.label >= 0)
      out[row.label] = static_cast<Stored>(row.at_label + value(static_cast<T>(logits[row.label * stride])));
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

std::tuple<Tensor, Tensor, Tensor, Tensor> token_statistics(const Tensor& logits, const Tensor& labels,
                                                            const std::optional<Tensor>& mask,
                                                            double temperature, bool with_entropy) {
  const char* op = "token_logprobs";
  const Positions positions = make_positions(op, logits, labels, mask, temperature);
  check_labels(op, positions);
  const ScalarType dtype = compute_dtype(op, "logits", logits, Numbers::floating);
  const int64_t sequences = positions.sequences, length = positions.length;
  const Tensor sums = torch::stable::new_empty(logits, {sequences}, dtype);
  const Tensor logprobs = torch::stable::new_empty(logits, {sequences, length}, dtype);
  const Tensor entropy = with_entropy ? torch::stable::new_empty(logits, {sequences, length}, dtype)
                                      : torch::stable::new_empty(logits, {0}, dtype);
  const Tensor normalizer = torch::stable::new_empty(logits, {sequences, length, 2}, ScalarType::Double);
  double* normalizer_out = mutable_data<double>(normalizer);
  std::vector<double> exact(positions.count());  // log-probabilities before they are rounded
  dispatch_logits(logits.scalar_type(), [&](auto stored, auto number) {
    using Stored = decltype(stored);
    using T = decltype(number);
    const auto* data = static_cast<const Stored*>(logits.const_data_ptr());
    T *out = mutable_data<T>(logprobs), *entropy_out = with_entropy ? mutable_data<T>(entropy) : nullptr,
      *sums_out = mutable_data<T>(sums);
    const T inverse = static_cast<T>(positions.inverse);
    const int64_t stride = positions.strides[2], n = positions.vocabulary;
    for_each_position(positions, [&](int64_t i) {
      RowSums<T> row{0, 1, 0};
      if (positions.counts(i)) {
        const Stored* values = data + positions.offset(i);
        row = with_entropy ? read_row<true, T>(values, stride, n, inverse)
                           : read_row<false, T>(values, stride, n, inverse);
        const T x = static_cast<T>(values[positions.labels[i] * stride]) * inverse;
        exact[i] = static_cast<double>(x) - static_cast<double>(row.shift) - std::log(row.sum);
      }
      out[i] = static_cast<T>(exact[i]);
      if (with_entropy) entropy_out[i] = static_cast<T>(row.entropy());
      normalizer_out[2 * i] = static_cast<double>(row.shift);
      normalizer_out[2 * i + 1] = row.sum;
    });
    for (int64_t b = 0; b < sequences; ++b) {
      double sum = 0;  // in the order of the positions, for any number of threads
      for (int64_t t = 0; t < length; ++t) sum += exact[b * length + t];
      sums_out[b] = static_cast<T>(sum);
    }
  });
  return {sums, logprobs, entropy, normalizer};
}

// A label outside the vocabulary is none in this row.
Tensor token_statistics_backward(const Tensor& gradient, const std::optional<Tensor>& entropy_gradient,
                                 const Tensor& logits, const Tensor& labels,
                                 const std::optional<Tensor>& mask, const std::optional<Tensor>& entropy,
                                 const Tensor& normalizer, double temperature) {
  const char* op = "token_statistics_backward";
  const Positions positions = make_positions(op, logits, labels, mask, temperature);
  check_saved(op, normalizer, entropy, logits, entropy_gradient.has_value());
  const Tensor incoming = prepared_gradient(op, "gradient", gradient, logits);
  const Tensor saved = torch::stable::contiguous(normalizer);
  const double *g = const_data<double>(incoming), *sums = const_data<double>(saved);
  std::optional<Tensor> entropy_incoming, entropies;
  const double *h = nullptr, *entropy_of = nullptr;
  if (entropy_gradient) {
    entropy_incoming = prepared_gradient(op, "entropy_gradient", *entropy_gradient, logits);
    entropies = prepared(*entropy, ScalarType::Double);
    h = const_data<double>(*entropy_incoming);
    entropy_of = const_data<double>(*entropies);
  }
  const Tensor result = torch::stable::new_empty(logits, logits.sizes());
  dispatch_logits(logits.scalar_type(), [&](auto stored, auto number) {
    using Stored = decltype(stored);
    using T = decltype(number);
    const auto* data = static_cast<const Stored*>(logits.const_data_ptr());
    auto* out = static_cast<Stored*>(result.mutable_data_ptr());
    const int64_t n = positions.vocabulary;
    for_each_position(positions, [&](int64_t i) {
      if (!positions.counts(i)) {
        std::fill_n(out + i * n, n, Stored(0));
        return;
      }
      const double sum = sums[2 * i + 1], inverse = positions.inverse;
      const double offset = h ? h[i] * (entropy_of[i] - std::log(sum)) : 0;
      const RowGradient<T> row{static_cast<T>(inverse),
                               static_cast<T>(sums[2 * i]),
                               static_cast<T>(-(g[i] + offset) * inverse / sum),
                               static_cast<T>(h ? -h[i] * inverse / sum : 0),
                               static_cast<T>(g[i] * inverse),
                               positions.has_label(i) ? positions.labels[i] : -1};
      const Stored* values = data + positions.offset(i);
      if (h)
        write_gradient<true, T>(values, positions.strides[2], n, row, out + i * n);
      else
        write_gradient<false, T>(values, positions.strides[2], n, row, out + i * n);
    });
  });
  return result;
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CPU, library) {
  library.impl("token_statistics", TORCH_BOX(&shfcas::token_statistics));
  library.impl("token_statistics_backward", TORCH_BOX(&shfcas::token_statistics_backward));
}
