// Two checked tensors of one layout, ready for a kernel: contiguous, in the compute dtype.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "checks.h"
#include "core/rows.h"

namespace shfcas {

enum class Numbers { floating, any };  // the kinds of dtype that an op accepts

// Returns the compute dtype. Widening is exact, so comparisons see the numbers as given.
inline ScalarType compute_dtype(const char* op, const char* argument, const Tensor& tensor, Numbers numbers) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return ScalarType::Double;
    case ScalarType::Float:
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return ScalarType::Float;
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Short:
    case ScalarType::Int:
      if (numbers == Numbers::any) return ScalarType::Int;
      break;
    case ScalarType::Long:
      if (numbers == Numbers::any) return ScalarType::Long;
      break;
    default:
      break;
  }
  fail(op, argument,
       numbers == Numbers::any ? "dtype float64, float32, float16, bfloat16 or an integer"
                               : "dtype float64, float32, float16 or bfloat16",
       toString(tensor.scalar_type()));
}

inline Tensor prepared(const Tensor& tensor, ScalarType dtype) {
  if (tensor.scalar_type() == dtype && tensor.is_contiguous()) return tensor;  // saves a call into torch
  return torch::stable::contiguous(tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype));
}

// Positions within a row fit into 32 bits.
constexpr int64_t kMaxRowLength = INT32_MAX;

inline void check_row_length(const char* op, const char* argument, int64_t length) {
  if (length > kMaxRowLength)
    fail(op, argument, "rows of at most " + std::to_string(kMaxRowLength) + " values", length);
}

struct Batch {
  Tensor x;
  Tensor y;
  ScalarType dtype;
  std::optional<Tensor> offsets;  // owns the memory of rows.offsets
  Rows rows;
  std::vector<int64_t> row_shape;  // shape of a result with one entry per row

  Tensor new_like_values() const { return torch::stable::new_empty(x, x.sizes()); }
  Tensor new_per_row(ScalarType result) const { return torch::stable::new_empty(x, row_shape, result); }
};

inline Batch make_batch(const char* op, const char* x_name, const Tensor& x, const char* y_name,
                        const Tensor& y, const std::optional<Tensor>& offsets, Numbers numbers) {
  const ScalarType dtype = compute_dtype(op, x_name, x, numbers);
  check_same_dtype(op, y_name, y, x_name, x);
  check_same_device(op, y_name, y, x_name, x);
  check_same_shape(op, y_name, y, x_name, x);
  // All checks come before the values are copied.
  Rows rows{};
  std::vector<int64_t> row_shape;
  std::optional<Tensor> limits;
  if (!offsets) {
    if (x.dim() < 1) fail(op, x_name, "at least 1 dimension", "a scalar");
    rows = {1, x.numel(), x.size(x.dim() - 1), nullptr};
    for (int64_t i = 0; i + 1 < x.dim(); ++i) {
      row_shape.push_back(x.size(i));
      rows.count *= x.size(i);
    }
    check_row_length(op, x_name, rows.length);
  } else {
    check_dim(op, x_name, x, 1);
    check_dim(op, "offsets", *offsets, 1);
    check_same_device(op, "offsets", *offsets, x_name, x);
    if (offsets->scalar_type() != ScalarType::Long)
      fail(op, "offsets", "dtype int64", toString(offsets->scalar_type()));
    if (offsets->numel() < 1) fail(op, "offsets", "one more offset than rows", "none");
    limits = torch::stable::contiguous(*offsets);
    rows = {offsets->numel() - 1, x.numel(), 0, static_cast<const int64_t*>(limits->const_data_ptr())};
    row_shape = {rows.count};
    if (x.is_cpu()) {
      check_offset_values(op, rows.offsets, rows.count, x.numel());
      int64_t uneven = 0;
      for (int64_t row = 0; row < rows.count; ++row) {
        check_row_length(op, x_name, rows.size(row));
        uneven += rows.size(row) != rows.size(0);
      }
      // Rows of equal length are a dense batch, which is faster.
      if (rows.count > 0 && uneven == 0) rows = {rows.count, rows.total, rows.size(0), nullptr};
    }
  }
  return {prepared(x, dtype), prepared(y, dtype), dtype, limits, rows, row_shape};
}

// Calls f with a value of the C++ type of dtype.
template <class F>
void dispatch_floating(ScalarType dtype, const F& f) {
  dtype == ScalarType::Double ? f(double{}) : f(float{});
}

template <class F>
void dispatch_any(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Int)
    f(int32_t{});
  else if (dtype == ScalarType::Long)
    f(int64_t{});
  else
    dispatch_floating(dtype, f);
}

template <class T>
const T* const_data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace shfcas
