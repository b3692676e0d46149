#include <torch/csrc/stable/library.h>

#include <string>

#include "batch.h"
#include "cpu/count_rows.h"
#include "tau_variant.h"

namespace shfcas {
namespace {

Tensor kendall_tau(const Tensor& x, const Tensor& y, const std::string& variant,
                   const std::optional<Tensor>& offsets) {
  const TauVariant tau = parse_tau_variant("kendall_tau", variant);
  const Batch batch = make_batch("kendall_tau", "x", x, "y", y, offsets, Numbers::any);
  const Tensor result = batch.new_per_row(ScalarType::Double);
  double* out = mutable_data<double>(result);
  dispatch_any(batch.dtype, [&](auto number) {
    using T = decltype(number);
    const auto value = [=](int64_t n, const PairCounts& counts) { return tau_from_counts(counts, n, tau); };
    const auto values = [=](const auto& counts, int n, double* numbers)
                            SHFCAS_INLINE_LAMBDA { block_tau(counts, n, tau, numbers); };
    count_rows(const_data<T>(batch.x), const_data<T>(batch.y), batch.rows, tau == TauVariant::c,
               OneNumber{out, value, values});
  });
  return result;
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CPU, library) {
  library.impl("kendall_tau", TORCH_BOX(&shfcas::kendall_tau));
}
