// Table of the kernels of this SIMD level.
#pragma once

#include "cpu/kernels.h"
#include "cpu/level/conflicts.h"
#include "cpu/level/long_rows.h"
#include "cpu/level/pacs.h"
#include "cpu/level/pair_bits.h"
#include "cpu/level/short_rows.h"

namespace shfcas::SHFCAS_LEVEL {

template <class T>
std::unique_ptr<LongRowCounter<T>> make_long_row_counter(bool with_classes) {
  return std::make_unique<SortingCounter<T>>(with_classes);
}

template <class T>
Kernels<T> table() {
  Kernels<T> kernels{&count_block<T>, nullptr, nullptr, &make_long_row_counter<T>};
  if constexpr (std::is_floating_point_v<T>) {
    kernels.pacs_rows = &pacs_rows<T>;
    kernels.conflict_blocks = &conflict_blocks<T>;
  }
  return kernels;
}

PairBitKernels pair_bit_table() { return {kBytes == 64 ? 12000 : 2000, &pack_pairs, &compare_pairs}; }

template Kernels<float> table();
template Kernels<double> table();
template Kernels<int32_t> table();
template Kernels<int64_t> table();

}  // namespace shfcas::SHFCAS_LEVEL
