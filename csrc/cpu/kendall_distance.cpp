#include <torch/csrc/stable/library.h>

#include "batch.h"
#include "cpu/count_rows.h"

namespace shfcas {
namespace {

Tensor kendall_distance(const Tensor& x, const Tensor& y, bool normalized,
                        const std::optional<Tensor>& offsets) {
  const Batch batch = make_batch("kendall_distance", "x", x, "y", y, offsets, Numbers::any);
  const Tensor result = batch.new_per_row(ScalarType::Double);
  double* out = mutable_data<double>(result);
  dispatch_any(batch.dtype, [&](auto number) {
    using T = decltype(number);
    const auto value = [=](int64_t n, const PairCounts& counts) {
      return distance_from_counts(counts, n, normalized);
    };
    const auto values = [=](const auto& counts, int n, double* numbers)
                            SHFCAS_INLINE_LAMBDA { block_distance(counts, n, normalized, numbers); };
    count_rows(const_data<T>(batch.x), const_data<T>(batch.y), batch.rows, false,
               OneNumber{out, value, values});
  });
  return result;
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CPU, library) {
  library.impl("kendall_distance", TORCH_BOX(&shfcas::kendall_distance));
}
