#include <torch/csrc/stable/library.h>

#include <string>

#include "batch.h"
#include "core/pair_counts.h"
#include "cuda/launch.h"
#include "tau_variant.h"

namespace shfcas {
namespace {

template <class T>
struct TauRow {
  const T *x, *y;
  Rows rows;
  TauVariant variant;
  double* tau;

  template <class Team>
  __device__ void operator()(const Team& team, int64_t row) const {
    const int64_t first = rows.begin(row), n = rows.size(row);
    const PairCounts counts = count_pairs(team, x + first, y + first, n);
    if (team.rank() == 0) tau[row] = tau_from_counts(counts, n, variant);
  }
};

Tensor kendall_tau(const Tensor& x, const Tensor& y, const std::string& variant,
                   const std::optional<Tensor>& offsets) {
  const TauVariant tau = parse_tau_variant("kendall_tau", variant);
  const DeviceScope device("kendall_tau", "x", x);
  const Batch batch = make_batch("kendall_tau", "x", x, "y", y, offsets, Numbers::any);
  const Tensor result = batch.new_per_row(ScalarType::Double);
  dispatch_any(batch.dtype, [&](auto number) {
    using T = decltype(number);
    launch_rows("kendall_tau", batch.rows, device.current_stream(),
                TauRow<T>{const_data<T>(batch.x), const_data<T>(batch.y), batch.rows, tau,
                          mutable_data<double>(result)});
  });
  return result;
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CUDA, library) {
  library.impl("kendall_tau", TORCH_BOX(&shfcas::kendall_tau));
}
