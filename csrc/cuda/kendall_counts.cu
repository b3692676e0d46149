#include <torch/csrc/stable/library.h>

#include <tuple>

#include "batch.h"
#include "core/pair_counts.h"
#include "cuda/launch.h"

namespace shfcas {
namespace {

template <class T>
struct CountsRow {
  const T *x, *y;
  Rows rows;
  int64_t *concordant, *discordant, *tied_x, *tied_y, *tied_both;

  template <class Team>
  __device__ void operator()(const Team& team, int64_t row) const {
    const int64_t first = rows.begin(row);
    const PairCounts counts = count_pairs(team, x + first, y + first, rows.size(row));
    if (team.rank() != 0) return;
    concordant[row] = counts.concordant;
    discordant[row] = counts.discordant;
    tied_x[row] = counts.tied_x;
    tied_y[row] = counts.tied_y;
    tied_both[row] = counts.tied_both;
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> kendall_counts(const Tensor& x, const Tensor& y,
                                                                  const std::optional<Tensor>& offsets) {
  const DeviceScope device("kendall_counts", "x", x);
  const Batch batch = make_batch("kendall_counts", "x", x, "y", y, offsets, Numbers::any);
  const auto column = [&] { return batch.new_per_row(ScalarType::Long); };
  const Tensor concordant = column(), discordant = column(), tied_x = column(), tied_y = column(),
               tied_both = column();
  dispatch_any(batch.dtype, [&](auto number) {
    using T = decltype(number);
    launch_rows("kendall_counts", batch.rows, device.current_stream(),
                CountsRow<T>{const_data<T>(batch.x), const_data<T>(batch.y), batch.rows,
                             mutable_data<int64_t>(concordant), mutable_data<int64_t>(discordant),
                             mutable_data<int64_t>(tied_x), mutable_data<int64_t>(tied_y),
                             mutable_data<int64_t>(tied_both)});
  });
  return {concordant, discordant, tied_x, tied_y, tied_both};
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CUDA, library) {
  library.impl("kendall_counts", TORCH_BOX(&shfcas::kendall_counts));
}
