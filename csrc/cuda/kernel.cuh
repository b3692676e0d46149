// Subset of CUDA used by the kernels, without nvcc-only syntax. Launches and shared memory go through these
// macros. So the same headers compile with a host compiler, where a header named emulation.h emulates the
// GPU. No kernel header includes torch.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/macros.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define SHFCAS_LAUNCH(kernel, grid, block, shared, stream) kernel<<<grid, block, shared, stream>>>
#define SHFCAS_SHARED(Type, name, count) __shared__ Type name[count]
// Chunk sizes. The emulated GPU uses small ones, so that tests also reach the second chunk.
#define SHFCAS_MOST_BLOCKS (1 << 20)     // blocks of a grid
#define SHFCAS_KEYS_AT_ONCE (1 << 24)    // keys sorted at a time in scratch memory
#define SHFCAS_LEAST_BY_RADIX (1 << 18)  // minimum keys of a row that is sorted alone, by radix
#define SHFCAS_WORDS_AT_ONCE (1 << 24)   // words of packed pairs in scratch memory
#else
#include "emulation.h"
#endif

namespace shfcas {

constexpr int kWarp = 32;

#ifdef __CUDACC__
inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}
#endif

template <class V>
SHFCAS_INLINE V lesser(V a, V b) {
  return b < a ? b : a;
}

template <class V>
SHFCAS_INLINE V greater(V a, V b) {
  return a < b ? b : a;
}

// Returns the grid size for a number of blocks of work. Kernels use a grid-stride loop over the rest.
inline unsigned grid_for(int64_t blocks) {
  return static_cast<unsigned>(lesser<int64_t>(blocks, SHFCAS_MOST_BLOCKS));
}

// Count that several blocks add to. It is an integer, so the order of additions does not matter.
using Total = unsigned long long;

// Vector of 16 bytes, the widest load of a thread.
template <class T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T value[kSize];
};

template <class T>
SHFCAS_INLINE bool is_aligned(const T* values) {
  return reinterpret_cast<uintptr_t>(values) % sizeof(Vector<T>) == 0;
}

}  // namespace shfcas
