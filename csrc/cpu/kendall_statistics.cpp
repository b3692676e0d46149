#include <torch/csrc/stable/library.h>

#include <tuple>

#include "batch.h"
#include "cpu/count_rows.h"

namespace shfcas {
namespace {

using Columns = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Columns kendall_statistics(const Tensor& x, const Tensor& y, const std::optional<Tensor>& offsets) {
  const Batch batch = make_batch("kendall_statistics", "x", x, "y", y, offsets, Numbers::any);
  const auto integers = [&] { return batch.new_per_row(ScalarType::Long); };
  const Tensor concordant = integers(), discordant = integers(), tied_x = integers(), tied_y = integers(),
               tied_both = integers(), classes = integers();
  const Tensor triples_x = batch.new_per_row(ScalarType::Double),
               triples_y = batch.new_per_row(ScalarType::Double);
  int64_t* out[] = {mutable_data<int64_t>(concordant), mutable_data<int64_t>(discordant),
                    mutable_data<int64_t>(tied_x),     mutable_data<int64_t>(tied_y),
                    mutable_data<int64_t>(tied_both),  mutable_data<int64_t>(classes)};
  double *out_x = mutable_data<double>(triples_x), *out_y = mutable_data<double>(triples_y);
  dispatch_any(batch.dtype, [&](auto number) {
    using T = decltype(number);
    count_rows(const_data<T>(batch.x), const_data<T>(batch.y), batch.rows, true,
               EachRow([&](int64_t row, int64_t, const PairCounts& counts) {
                 out[0][row] = counts.concordant;
                 out[1][row] = counts.discordant;
                 out[2][row] = counts.tied_x;
                 out[3][row] = counts.tied_y;
                 out[4][row] = counts.tied_both;
                 out[5][row] = counts.classes;
                 out_x[row] = counts.triples_x;
                 out_y[row] = counts.triples_y;
               }));
  });
  return {concordant, discordant, tied_x, tied_y, tied_both, classes, triples_x, triples_y};
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CPU, library) {
  library.impl("kendall_statistics", TORCH_BOX(&shfcas::kendall_statistics));
}
