// Checks of logits (B, T, V), their labels (B, T) and their optional mask (B, T).
#pragma once

#include <optional>
#include <string>

#include "batch.h"

namespace shfcas {

// Returns the compute dtype of the logits.
inline ScalarType check_logits(const char* op, const Tensor& logits, const Tensor& labels,
                               const std::optional<Tensor>& mask) {
  const ScalarType dtype = compute_dtype(op, "logits", logits, Numbers::floating);
  check_dim(op, "logits", logits, 3);
  const auto check_positions = [&](const char* argument, const Tensor& tensor, ScalarType expected) {
    if (tensor.scalar_type() != expected)
      fail(op, argument, "dtype " + std::string(toString(expected)), toString(tensor.scalar_type()));
    check_same_device(op, argument, tensor, "logits", logits);
    if (tensor.dim() != 2 || tensor.size(0) != logits.size(0) || tensor.size(1) != logits.size(1))
      fail(op, argument, "the first two dimensions of logits, " + shape_of(logits), shape_of(tensor));
  };
  check_positions("labels", labels, ScalarType::Long);
  if (mask) check_positions("mask", *mask, ScalarType::Bool);
  return dtype;
}

// Checks the incoming gradient of sequence_logprobs: one value per sequence.
inline void check_sequence_gradient(const char* op, const Tensor& gradient, const Tensor& logits) {
  compute_dtype(op, "gradient", gradient, Numbers::floating);
  check_same_device(op, "gradient", gradient, "logits", logits);
  if (gradient.dim() != 1 || gradient.size(0) != logits.size(0))
    fail(op, "gradient", "one value a sequence, (" + std::to_string(logits.size(0)) + ",)",
         shape_of(gradient));
}

}  // namespace shfcas
