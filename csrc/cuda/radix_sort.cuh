// Radix sort of the keys of one huge row, with CUB from the CUDA toolkit. It takes eight passes over 64-bit
// keys for any number of keys, where merging tiles takes one pass per doubling. On the emulated GPU the host
// sorts, so that the surrounding code runs there too.
#pragma once

#include "cuda/kernel.cuh"

#ifdef __CUDACC__
#include <cub/device/device_radix_sort.cuh>
#else
#include <algorithm>
#endif

namespace shfcas {

// Returns the bytes of scratch memory for sorting n keys, besides the two arrays.
inline int64_t radix_scratch_bytes(int64_t n) {
#ifdef __CUDACC__
  size_t bytes = 0;
  cub::DoubleBuffer<uint64_t> buffers;
  check_cuda(cub::DeviceRadixSort::SortKeys(nullptr, bytes, buffers, n), "radix sort, scratch memory");
  return static_cast<int64_t>(bytes);
#else
  return n ? 1 : 0;
#endif
}

// Sorts the n keys of `keys` and returns the array with the result: `keys` or `other`.
inline uint64_t* radix_sort(uint64_t* keys, uint64_t* other, int64_t n, void* scratch, int64_t scratch_bytes,
                            cudaStream_t stream) {
#ifdef __CUDACC__
  auto bytes = static_cast<size_t>(scratch_bytes);
  cub::DoubleBuffer<uint64_t> buffers(keys, other);
  check_cuda(cub::DeviceRadixSort::SortKeys(scratch, bytes, buffers, n, 0, 64, stream), "radix sort");
  return buffers.Current();
#else
  static_cast<void>(stream);
  std::fill_n(static_cast<char*>(scratch), scratch_bytes, 0);
  std::copy_n(keys, n, other);
  std::sort(other, other + n);
  return other;
#endif
}

}  // namespace shfcas
