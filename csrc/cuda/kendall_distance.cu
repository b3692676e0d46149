#include <torch/csrc/stable/library.h>

#include "batch.h"
#include "core/pair_counts.h"
#include "cuda/launch.h"

namespace shfcas {
namespace {

template <class T>
struct DistanceRow {
  const T *x, *y;
  Rows rows;
  bool normalized;
  double* distance;

  template <class Team>
  __device__ void operator()(const Team& team, int64_t row) const {
    const int64_t first = rows.begin(row), n = rows.size(row);
    const PairCounts counts = count_pairs(team, x + first, y + first, n);
    if (team.rank() == 0) distance[row] = distance_from_counts(counts, n, normalized);
  }
};

Tensor kendall_distance(const Tensor& x, const Tensor& y, bool normalized,
                        const std::optional<Tensor>& offsets) {
  const DeviceScope device("kendall_distance", "x", x);
  const Batch batch = make_batch("kendall_distance", "x", x, "y", y, offsets, Numbers::any);
  const Tensor result = batch.new_per_row(ScalarType::Double);
  dispatch_any(batch.dtype, [&](auto number) {
    using T = decltype(number);
    launch_rows("kendall_distance", batch.rows, device.current_stream(),
                DistanceRow<T>{const_data<T>(batch.x), const_data<T>(batch.y), batch.rows, normalized,
                               mutable_data<double>(result)});
  });
  return result;
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CUDA, library) {
  library.impl("kendall_distance", TORCH_BOX(&shfcas::kendall_distance));
}
