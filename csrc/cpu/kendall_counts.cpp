#include <torch/csrc/stable/library.h>

#include <tuple>

#include "batch.h"
#include "cpu/count_rows.h"

namespace shfcas {
namespace {

struct CountColumns {
  int64_t* out[5];

  void row(int64_t row, int64_t, const PairCounts& counts) const {
    out[0][row] = counts.concordant;
    out[1][row] = counts.discordant;
    out[2][row] = counts.tied_x;
    out[3][row] = counts.tied_y;
    out[4][row] = counts.tied_both;
  }

  template <class K, class RowOf>
  void block(const BlockCounts<K>& counts, int n, int lanes, const RowOf& row_of) const {
    alignas(64) int64_t columns[5][kBlockLanes<K>];
    vectorize([&]() SHFCAS_INLINE_LAMBDA { block_columns(counts, n, columns); });
    for (int column = 0; column < 5; ++column)
      for (int l = 0; l < lanes; ++l) out[column][row_of(l)] = columns[column][l];
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> kendall_counts(const Tensor& x, const Tensor& y,
                                                                  const std::optional<Tensor>& offsets) {
  const Batch batch = make_batch("kendall_counts", "x", x, "y", y, offsets, Numbers::any);
  const auto column = [&] { return batch.new_per_row(ScalarType::Long); };
  const Tensor concordant = column(), discordant = column(), tied_x = column(), tied_y = column(),
               tied_both = column();
  const CountColumns sink{{mutable_data<int64_t>(concordant), mutable_data<int64_t>(discordant),
                           mutable_data<int64_t>(tied_x), mutable_data<int64_t>(tied_y),
                           mutable_data<int64_t>(tied_both)}};
  dispatch_any(batch.dtype, [&](auto number) {
    using T = decltype(number);
    count_rows(const_data<T>(batch.x), const_data<T>(batch.y), batch.rows, false, sink);
  });
  return {concordant, discordant, tied_x, tied_y, tied_both};
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CPU, library) {
  library.impl("kendall_counts", TORCH_BOX(&shfcas::kendall_counts));
}
