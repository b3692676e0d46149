// A statistic of every pair of rows of one matrix.
#include <torch/csrc/stable/library.h>

#include <string>

#include "batch.h"
#include "cpu/count_rows.h"
#include "tau_variant.h"

namespace shfcas {
namespace {

// The symmetric (M, M) matrix of statistic(counts, n) over the rows of x, (M, N). A row is paired with itself
// too.
template <class Statistic>
Tensor pair_matrix(const char* op, const Tensor& x, bool with_classes, const Statistic& statistic) {
  const ScalarType dtype = compute_dtype(op, "x", x, Numbers::any);
  check_dim(op, "x", x, 2);
  const int64_t m = x.size(0), n = x.size(1);
  check_row_length(op, "x", n);
  const Tensor values = prepared(x, dtype);
  const Tensor result = torch::stable::new_empty(values, {m, m}, ScalarType::Double);
  double* out = mutable_data<double>(result);
  dispatch_any(dtype, [&](auto number) {
    using T = decltype(number);
    const T* data = const_data<T>(values);
    const Rows rows{1, n, n, nullptr};
    // Row i of the triangle with row m - 1 - i: together they are as long for every i.
    torch::stable::parallel_for(0, (m + 1) / 2, 1, [&](int64_t begin, int64_t end) {
      const auto fill_row = [&](int64_t i) {
        for (int64_t j = i; j < m; ++j)
          RowCounter<T>(data + i * n, data + j * n, rows, with_classes)
              .run(0, 1, [&](int64_t, int64_t, const PairCounts& counts) {
                out[i * m + j] = out[j * m + i] = statistic(counts, n);
              });
      };
      for (int64_t i = begin; i < end; ++i) {
        fill_row(i);
        if (m - 1 - i != i) fill_row(m - 1 - i);
      }
    });
  });
  return result;
}

Tensor kendall_tau_matrix(const Tensor& x, const std::string& variant) {
  const TauVariant tau = parse_tau_variant("kendall_tau_matrix", variant);
  return pair_matrix("kendall_tau_matrix", x, tau == TauVariant::c,
                     [=](const PairCounts& counts, int64_t n) { return tau_from_counts(counts, n, tau); });
}

Tensor kendall_distance_matrix(const Tensor& x) {
  return pair_matrix("kendall_distance_matrix", x, false, [](const PairCounts& counts, int64_t n) {
    return distance_from_counts(counts, n, true);
  });
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CPU, library) {
  library.impl("kendall_tau_matrix", TORCH_BOX(&shfcas::kendall_tau_matrix));
  library.impl("kendall_distance_matrix", TORCH_BOX(&shfcas::kendall_distance_matrix));
}
