// The dialect of the kernels: CUDA, less what only nvcc can read. Launches and shared memory go through these
// macros, so that the same headers compile with a host compiler against a header named emulation.h that plays
// the part of the GPU. No kernel header includes torch.
#pragma once

#include <cstdint>

#include "core/macros.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define SHFCAS_LAUNCH(kernel, grid, block, shared, stream) kernel<<<grid, block, shared, stream>>>
#define SHFCAS_SHARED(Type, name, count) __shared__ Type name[count]
// How much is done at a time. The emulated GPU has so little of each that tests see what comes next.
#define SHFCAS_MOST_BLOCKS (1 << 20)     // of a grid
#define SHFCAS_KEYS_AT_ONCE (1 << 24)    // sorted in scratch memory
#define SHFCAS_LEAST_BY_RADIX (1 << 18)  // keys of a row that has the device to itself
#define SHFCAS_WORDS_AT_ONCE (1 << 24)   // of packed pairs, in scratch memory
#else
#include "emulation.h"
#endif

namespace shfcas {

constexpr int kWarp = 32;

template <class V>
SHFCAS_INLINE V lesser(V a, V b) {
  return b < a ? b : a;
}

template <class V>
SHFCAS_INLINE V greater(V a, V b) {
  return a < b ? b : a;
}

// A grid for so many blocks of work. Kernels launched with it stride over what is left.
inline unsigned grid_for(int64_t blocks) {
  return static_cast<unsigned>(lesser<int64_t>(blocks, SHFCAS_MOST_BLOCKS));
}

// Counts that several blocks add to. They are integers, so that the order does not matter.
using Total = unsigned long long;

// 16 bytes, the widest load of a thread.
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
