// Ops that are functions of the pair counts of each row. They share their kernels, hence one file.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "batch.h"
#include "cuda/kendall_kernels.cuh"
#include "cuda/launch.h"
#include "tau_variant.h"

namespace shfcas {
namespace {

void count_rows(const char* op, const DeviceScope& device, const Batch& batch, const KendallOutput& output) {
  dispatch_any(batch.dtype, [&](auto number) {
    using T = decltype(number);
    const Tensor scratch = new_scratch(batch.x, kendall_scratch_bytes<T>(batch.rows));
    launch_kendall(batch.rows, const_data<T>(batch.x), const_data<T>(batch.y), scratch.mutable_data_ptr(),
                   device.current_stream(), output);
  });
  check_launch(op);
}

using Counts = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Counts new_counts(const Batch& batch, KendallOutput& output) {
  const auto column = [&](int64_t*& data) {
    const Tensor result = batch.new_per_row(ScalarType::Long);
    data = mutable_data<int64_t>(result);
    return result;
  };
  return {column(output.concordant), column(output.discordant), column(output.tied_x), column(output.tied_y),
          column(output.tied_both)};
}

Counts kendall_counts(const Tensor& x, const Tensor& y, const std::optional<Tensor>& offsets) {
  const DeviceScope device("kendall_counts", "x", x);
  const Batch batch = make_batch("kendall_counts", "x", x, "y", y, offsets, Numbers::any);
  KendallOutput output;
  const Counts counts = new_counts(batch, output);
  count_rows("kendall_counts", device, batch, output);
  return counts;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> kendall_statistics(
    const Tensor& x, const Tensor& y, const std::optional<Tensor>& offsets) {
  const DeviceScope device("kendall_statistics", "x", x);
  const Batch batch = make_batch("kendall_statistics", "x", x, "y", y, offsets, Numbers::any);
  KendallOutput output;
  const Counts counts = new_counts(batch, output);
  const Tensor classes = batch.new_per_row(ScalarType::Long);
  const Tensor triples_x = batch.new_per_row(ScalarType::Double);
  const Tensor triples_y = batch.new_per_row(ScalarType::Double);
  output.classes = mutable_data<int64_t>(classes);
  output.triples_x = mutable_data<double>(triples_x);
  output.triples_y = mutable_data<double>(triples_y);
  count_rows("kendall_statistics", device, batch, output);
  return std::tuple_cat(counts, std::make_tuple(classes, triples_x, triples_y));
}

Tensor kendall_tau(const Tensor& x, const Tensor& y, const std::string& variant,
                   const std::optional<Tensor>& offsets) {
  KendallOutput output;
  output.variant = parse_tau_variant("kendall_tau", variant);
  const DeviceScope device("kendall_tau", "x", x);
  const Batch batch = make_batch("kendall_tau", "x", x, "y", y, offsets, Numbers::any);
  const Tensor result = batch.new_per_row(ScalarType::Double);
  output.tau = mutable_data<double>(result);
  count_rows("kendall_tau", device, batch, output);
  return result;
}

Tensor kendall_distance(const Tensor& x, const Tensor& y, bool normalized,
                        const std::optional<Tensor>& offsets) {
  const DeviceScope device("kendall_distance", "x", x);
  const Batch batch = make_batch("kendall_distance", "x", x, "y", y, offsets, Numbers::any);
  const Tensor result = batch.new_per_row(ScalarType::Double);
  KendallOutput output;
  output.normalized = normalized;
  output.distance = mutable_data<double>(result);
  count_rows("kendall_distance", device, batch, output);
  return result;
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CUDA, library) {
  library.impl("kendall_counts", TORCH_BOX(&shfcas::kendall_counts));
  library.impl("kendall_statistics", TORCH_BOX(&shfcas::kendall_statistics));
  library.impl("kendall_tau", TORCH_BOX(&shfcas::kendall_tau));
  library.impl("kendall_distance", TORCH_BOX(&shfcas::kendall_distance));
}
