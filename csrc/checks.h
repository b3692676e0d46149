// Argument checks shared by all ops. A failed check names the op, the argument, the expected and the actual
// value. It reaches Python as ValueError.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace shfcas {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << (tensor.dim() == 1 ? ",)" : ")");
  return text.str();
}

inline std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  const std::string type = tensor.is_cuda() ? "cuda" : "another device";
  return type + ":" + std::to_string(tensor.get_device_index());
}

template <class Expected, class Got>
[[noreturn]] void fail(const char* op, const char* argument, const Expected& expected, const Got& got) {
  std::ostringstream text;
  text << op << ": " << argument << ": expected " << expected << ", got " << got;
  throw std::invalid_argument(text.str());
}

inline void check_same_shape(const char* op, const char* argument, const Tensor& tensor, const char* other,
                             const Tensor& reference) {
  bool same = tensor.dim() == reference.dim();
  for (int64_t i = 0; same && i < tensor.dim(); ++i) same = tensor.size(i) == reference.size(i);
  if (!same)
    fail(op, argument, "the shape of " + std::string(other) + ", " + shape_of(reference), shape_of(tensor));
}

inline void check_same_device(const char* op, const char* argument, const Tensor& tensor, const char* other,
                              const Tensor& reference) {
  if (tensor.device() != reference.device())
    fail(op, argument, "the device of " + std::string(other) + ", " + device_of(reference),
         device_of(tensor));
}

inline void check_same_dtype(const char* op, const char* argument, const Tensor& tensor, const char* other,
                             const Tensor& reference) {
  if (tensor.scalar_type() != reference.scalar_type())
    fail(op, argument, "the dtype of " + std::string(other) + ", " + toString(reference.scalar_type()),
         toString(tensor.scalar_type()));
}

inline void check_dim(const char* op, const char* argument, const Tensor& tensor, int64_t dim) {
  if (tensor.dim() != dim)
    fail(op, argument, std::to_string(dim) + " dimension(s)", "shape " + shape_of(tensor));
}

// Checks offsets[0] == 0 <= offsets[1] <= ... <= offsets[count] == total, the layout of Arrow and torch.
inline void check_offset_values(const char* op, const int64_t* offsets, int64_t count, int64_t total) {
  if (offsets[0] != 0) fail(op, "offsets", "a first offset of 0", offsets[0]);
  for (int64_t row = 0; row < count; ++row)
    if (offsets[row + 1] < offsets[row])
      fail(op, "offsets", "offsets that never decrease",
           std::to_string(offsets[row]) + " followed by " + std::to_string(offsets[row + 1]) + " at row " +
               std::to_string(row));
  if (offsets[count] != total)
    fail(op, "offsets", "a last offset equal to the number of values, " + std::to_string(total),
         offsets[count]);
}

}  // namespace shfcas
