// Checks of logits (B, T, V), and of what belongs to their positions (B, T).
#pragma once

#include <cmath>
#include <optional>
#include <string>

#include "batch.h"

namespace shfcas {

inline void check_positions(const char* op, const char* argument, const Tensor& tensor,
                            const Tensor& logits) {
  check_same_device(op, argument, tensor, "logits", logits);
  if (tensor.dim() != 2 || tensor.size(0) != logits.size(0) || tensor.size(1) != logits.size(1))
    fail(op, argument, "the first two dimensions of logits, " + shape_of(logits), shape_of(tensor));
}

// Returns the compute dtype of the logits.
inline ScalarType check_logits(const char* op, const Tensor& logits, const Tensor& labels,
                               const std::optional<Tensor>& mask, double temperature) {
  const ScalarType dtype = compute_dtype(op, "logits", logits, Numbers::floating);
  check_dim(op, "logits", logits, 3);
  const auto check = [&](const char* argument, const Tensor& tensor, ScalarType expected) {
    if (tensor.scalar_type() != expected)
      fail(op, argument, "dtype " + std::string(toString(expected)), toString(tensor.scalar_type()));
    check_positions(op, argument, tensor, logits);
  };
  check("labels", labels, ScalarType::Long);
  if (mask) check("mask", *mask, ScalarType::Bool);
  if (!(temperature > 0 && std::isfinite(temperature)))
    fail(op, "temperature", "a finite number above 0", temperature);
  return dtype;
}

// Checks a gradient of a result with one value per position; returns it in double.
inline Tensor prepared_gradient(const char* op, const char* argument, const Tensor& gradient,
                                const Tensor& logits) {
  compute_dtype(op, argument, gradient, Numbers::floating);
  check_positions(op, argument, gradient, logits);
  return prepared(gradient, ScalarType::Double);
}

// Checks the results of the forward pass that the backward pass uses.
inline void check_saved(const char* op, const Tensor& normalizer, const std::optional<Tensor>& entropy,
                        const Tensor& logits, bool with_entropy) {
  check_same_device(op, "normalizer", normalizer, "logits", logits);
  if (normalizer.scalar_type() != ScalarType::Double ||
      normalizer.numel() != 2 * logits.size(0) * logits.size(1))
    fail(op, "normalizer", "the normalizer of token_statistics", shape_of(normalizer));
  if (!with_entropy) return;
  if (!entropy) fail(op, "entropy", "the entropy of token_statistics", "none");
  check_positions(op, "entropy", *entropy, logits);
}

}  // namespace shfcas
