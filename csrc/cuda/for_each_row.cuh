// Two kernels for all row arithmetic: row is an object whose row(team, r) computes and writes row r.
//   thread_per_row: the team is one thread; rows r = global thread, global thread + all threads, ...
//   block_per_row:  the team is one block of kBlockThreads; rows r = block, block + all blocks, ...
// Writes of different rows are disjoint, and no order of arithmetic depends on the grid.
#pragma once

#include <cstdint>

#include "core/team.h"

namespace shfcas {

constexpr int kBlockThreads = 128;

struct BlockTeam {
  __device__ int64_t rank() const { return threadIdx.x; }
  __device__ int64_t size() const { return kBlockThreads; }

  // A tree over shared memory. The barrier in front keeps a slow reader's result of the sum before.
  template <class V>
  __device__ V sum(V value) const {
    __shared__ V partial[kBlockThreads];
    __syncthreads();
    partial[threadIdx.x] = value;
    for (int stride = kBlockThreads / 2; stride > 0; stride /= 2) {
      __syncthreads();
      if (threadIdx.x < stride) partial[threadIdx.x] += partial[threadIdx.x + stride];
    }
    __syncthreads();
    return partial[0];
  }
};

template <class Row>
__global__ void __launch_bounds__(kBlockThreads) thread_per_row(int64_t count, Row row) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kBlockThreads;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x; r < count; r += threads)
    row(SerialTeam{}, r);
}

template <class Row>
__global__ void __launch_bounds__(kBlockThreads) block_per_row(int64_t count, Row row) {
  for (int64_t r = blockIdx.x; r < count; r += gridDim.x) row(BlockTeam{}, r);
}

}  // namespace shfcas
