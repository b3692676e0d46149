// Teams of threads that share a row (see core/team.h), with two more functions for kernels:
//   sync()      barrier: writes of any member before it are visible to all members after it
//   any(flag)   whether the flag is set for any member
// Every member has to call them the same number of times.
#pragma once

#include "cuda/kernel.cuh"

namespace shfcas {

// Half a warp.
struct SubWarpTeam {
  static constexpr int kSize = 16;

  __device__ int rank() const { return threadIdx.x % kSize; }
  __device__ int size() const { return kSize; }
  __device__ unsigned mask() const { return 0xffffu << (threadIdx.x % kWarp / kSize * kSize); }
  __device__ void sync() const { __syncwarp(mask()); }
  __device__ bool any(bool flag) const { return __ballot_sync(mask(), flag) != 0; }

  template <class V>
  __device__ V sum(V value) const {
    for (int step = kSize / 2; step > 0; step /= 2) value += __shfl_xor_sync(mask(), value, step);
    return value;
  }
};

// A block of kThreads threads.
template <int kThreads>
struct BlockTeam {
  static constexpr int kSize = kThreads;

  __device__ int rank() const { return threadIdx.x; }
  __device__ int size() const { return kThreads; }
  __device__ void sync() const { __syncthreads(); }
  __device__ bool any(bool flag) const { return __syncthreads_or(flag) != 0; }

  // Reduces over the team; combine must be associative and commutative.
  template <class V, class Combine>
  __device__ V reduce(V value, const Combine& combine) const {
    SHFCAS_SHARED(V, of_warp, kThreads / kWarp);
    for (int step = kWarp / 2; step > 0; step /= 2)
      value = combine(value, __shfl_xor_sync(0xffffffffu, value, step));
    __syncthreads();  // all threads have read the previous result
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = of_warp[0];
    for (int warp = 1; warp < kThreads / kWarp; ++warp) value = combine(value, of_warp[warp]);
    return value;
  }

  template <class V>
  __device__ V sum(V value) const {
    return reduce(value, [](V a, V b) { return a + b; });
  }
};

}  // namespace shfcas
