#include <torch/csrc/stable/library.h>

#include <string>

#include "batch.h"
#include "cuda/launch.h"
#include "cuda/matrix_kernels.cuh"
#include "tau_variant.h"

namespace shfcas {
namespace {

Tensor pair_matrix(const char* op, const Tensor& x, const MatrixStatistic& statistic) {
  const DeviceScope device(op, "x", x);
  const ScalarType dtype = compute_dtype(op, "x", x, Numbers::any);
  check_dim(op, "x", x, 2);
  const int64_t m = x.size(0), n = x.size(1);
  const Tensor vectors = prepared(x, dtype);
  const Tensor result = torch::stable::new_empty(vectors, {m, m}, ScalarType::Double);
  dispatch_any(dtype, [&](auto number) {
    using T = decltype(number);
    const Tensor scratch = new_scratch(vectors, matrix_scratch_bytes<T>(m, n));
    launch_matrix(const_data<T>(vectors), m, n, statistic, mutable_data<double>(result),
                  scratch.mutable_data_ptr(), device.current_stream());
  });
  check_launch(op);
  return result;
}

Tensor kendall_tau_matrix(const Tensor& x, const std::string& variant) {
  return pair_matrix("kendall_tau_matrix", x, {false, parse_tau_variant("kendall_tau_matrix", variant)});
}

Tensor kendall_distance_matrix(const Tensor& x) {
  return pair_matrix("kendall_distance_matrix", x, {true, TauVariant::b});
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CUDA, library) {
  library.impl("kendall_tau_matrix", TORCH_BOX(&shfcas::kendall_tau_matrix));
  library.impl("kendall_distance_matrix", TORCH_BOX(&shfcas::kendall_distance_matrix));
}
