// Three kernels for all row arithmetic. Each handles a range of row lengths and skips all other rows.
//   thread_rows   A thread per row. Rows are consecutive in memory, so a block copies all of its rows to
//                 shared memory with coalesced reads, and each thread reads its own row there.
//   subwarp_rows  Half a warp per row; the team reads global memory, coalesced.
//   block_rows    A block per row; the team reads global memory, coalesced.
//
// Work defines the computation of a row:
//   Value, kInputs, kOutputs; in[], out[]    input and output arrays in global memory, in the layout of Rows
//   Shared, shared_size(longest)             shared memory of a team for rows of at most `longest` values
//   thread<longest>(row, n, in, out)         writes a row from its n values at in[0], ... to out[0], ...
//   team(team, row, first, n, shared)        writes a row from values first, first + 1, ... of its own arrays
// Rows write to disjoint memory, and no order of arithmetic depends on the grid.
#pragma once

#include "core/rows.h"
#include "core/team.h"
#include "cuda/kernel.cuh"
#include "cuda/teams.cuh"

namespace shfcas {

constexpr int kLongestThreadRow = 16, kLongestSubWarpRow = 64;
constexpr int kThreadRows = 64;    // rows, and threads, of a block of thread_rows
constexpr int kTeamThreads = 128;  // threads of a block of the other two

struct Lengths {
  int64_t least, most;
  SHFCAS_INLINE bool contain(int64_t n) const { return least <= n && n <= most; }
  SHFCAS_INLINE bool meet(const Lengths& other) const {
    return least <= most && least <= other.most && other.least <= most;
  }
};

// Layout of rows of n <= 16 values in shared memory. The pitch of the rows is odd, so that threads reading
// the same position of neighbouring rows cause no bank conflicts. Jagged rows (n = 0) keep the global layout.
class Padding {
 public:
  __device__ explicit Padding(int n)
      : pitch_(n | 1), per_value_(n > 0 && n % 2 == 0 ? (kOne + n - 1) / n : 0) {}
  __device__ int row(int index) const { return index * pitch_; }
  __device__ int place(int k) const { return k + k * per_value_ / kOne; }  // k + k / n, or k

 private:
  static constexpr int kOne = 1 << 20;  // exact for k < 2^11, which no block exceeds
  int pitch_, per_value_;
};

// Copy `count` values to shared memory and back, spread over the threads of the block.
template <class T>
__device__ void load_rows(const T* from, int count, const Padding& padding, T* to) {
  int k = threadIdx.x;
  if (is_aligned(from)) {
    constexpr int kSize = Vector<T>::kSize;
    const auto* vectors = reinterpret_cast<const Vector<T>*>(from);
    for (int v = threadIdx.x; v < count / kSize; v += kThreadRows) {
      const Vector<T> vector = vectors[v];
      for (int i = 0; i < kSize; ++i) to[padding.place(v * kSize + i)] = vector.value[i];
    }
    k += count / kSize * kSize;
  }
  for (; k < count; k += kThreadRows) to[padding.place(k)] = from[k];
}

template <class T>
__device__ void store_rows(const T* from, int count, const Padding& padding, T* to) {
  int k = threadIdx.x;
  if (is_aligned(to)) {
    constexpr int kSize = Vector<T>::kSize;
    auto* vectors = reinterpret_cast<Vector<T>*>(to);
    for (int v = threadIdx.x; v < count / kSize; v += kThreadRows) {
      Vector<T> vector;
      for (int i = 0; i < kSize; ++i) vector.value[i] = from[padding.place(v * kSize + i)];
      vectors[v] = vector;
    }
    k += count / kSize * kSize;
  }
  for (; k < count; k += kThreadRows) to[k] = from[padding.place(k)];
}

template <class Work, int kLongest, bool kJagged>
__global__ void __launch_bounds__(kThreadRows) thread_rows(Rows rows, Lengths lengths, Work work) {
  using T = typename Work::Value;
  constexpr int kArray = kThreadRows * (kLongest + 1);
  constexpr int kIn = Work::kInputs, kOut = Work::kOutputs;
  SHFCAS_SHARED(T, staged, kIn * kArray);
  const Padding padding(kJagged ? 0 : static_cast<int>(rows.length));
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreadRows;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kThreadRows; first < rows.count; first += step) {
    const int64_t end = lesser(first + kThreadRows, rows.count), row = first + threadIdx.x;
    const int64_t base = rows.begin(first), behind = rows.begin(end - 1) + rows.size(end - 1);
    // Jagged rows may be longer than the staged part. A row that is not completely staged is read from global
    // memory.
    const int count =
        static_cast<int>(lesser<int64_t>(greater<int64_t>(behind - base, 0), kThreadRows * kLongest));
#pragma unroll
    for (int k = 0; k < kIn; ++k) load_rows(work.in[k] + base, count, padding, staged + k * kArray);
    __syncthreads();

    if (row < end && lengths.contain(rows.size(row))) {
      const int n = static_cast<int>(rows.size(row));
      const T* in[kIn];
      T* out[kOut > 0 ? kOut : 1] = {};
      if constexpr (kJagged) {
        const int64_t begin = rows.begin(row), offset = begin - base;
        const bool here = offset >= 0 && offset + n <= count;
#pragma unroll
        for (int k = 0; k < kIn; ++k) in[k] = here ? staged + k * kArray + offset : work.in[k] + begin;
#pragma unroll
        for (int k = 0; k < kOut; ++k) out[k] = work.out[k] + begin;
      } else {  // the results take the place of the last inputs
#pragma unroll
        for (int k = 0; k < kIn; ++k) in[k] = staged + k * kArray + padding.row(threadIdx.x);
#pragma unroll
        for (int k = 0; k < kOut; ++k) out[k] = staged + (kIn - kOut + k) * kArray + padding.row(threadIdx.x);
      }
      work.template thread<kLongest>(row, n, in, out);
    }
    __syncthreads();

    if (!kJagged && kOut > 0) {
#pragma unroll
      for (int k = 0; k < kOut; ++k)
        store_rows(staged + (kIn - kOut + k) * kArray, count, padding, work.out[k] + base);
      __syncthreads();
    }
  }
}

template <class Work>
__global__ void __launch_bounds__(kTeamThreads) subwarp_rows(Rows rows, Lengths lengths, Work work) {
  constexpr int kTeams = kTeamThreads / SubWarpTeam::kSize, kShared = Work::shared_size(kLongestSubWarpRow);
  SHFCAS_SHARED(typename Work::Shared, shared, kTeams * kShared);
  const int index = threadIdx.x / SubWarpTeam::kSize;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTeams;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kTeams + index; row < rows.count; row += step)
    if (lengths.contain(rows.size(row)))
      work.team(SubWarpTeam{}, row, rows.begin(row), rows.size(row), shared + index * kShared);
}

// Calls f(row) for each row of this block of kThreads whose length is in range. It checks many rows at once,
// since only few of many jagged rows may be in range.
template <int kThreads, class F>
__device__ void for_each_row_of_block(const Rows& rows, const Lengths& lengths, int at_once, const F& f) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * at_once;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * at_once; first < rows.count; first += step) {
    const int64_t end = lesser(first + at_once, rows.count);
    bool any = false;
    for (int64_t row = first + threadIdx.x; row < end; row += kThreads)
      any = any || lengths.contain(rows.size(row));
    if (!__syncthreads_or(any)) continue;
    for (int64_t row = first; row < end; ++row)
      if (lengths.contain(rows.size(row))) f(row);
  }
}

// Returns the number of rows that a block checks at once: one if there are few rows.
inline int rows_at_once(const Rows& rows) {
  return rows.offsets && rows.count > (1 << 16) ? kTeamThreads : 1;
}

template <class Work>
__global__ void __launch_bounds__(kTeamThreads)
    block_rows(Rows rows, Lengths lengths, int at_once, Work work) {
  SHFCAS_SHARED(typename Work::Shared, shared, Work::shared_size(Work::kLongest));
  for_each_row_of_block<kTeamThreads>(rows, lengths, at_once, [&](int64_t row) {
    work.team(BlockTeam<kTeamThreads>{}, row, rows.begin(row), rows.size(row), shared);
  });
}

// Returns the possible row lengths, as far as the host knows.
inline Lengths possible_lengths(const Rows& rows) {
  return rows.offsets ? Lengths{0, rows.total} : Lengths{rows.length, rows.length};
}

// Launches the work for rows up to longest. Rows up to longest_thread_row (-1 for none) get one thread each.
// Dense rows need one kernel. For jagged rows all kernels run, since only the device knows the lengths.
template <class Work>
void launch_rows(const Rows& rows, int longest_thread_row, int64_t longest, cudaStream_t stream,
                 const Work& work) {
  if (rows.count == 0) return;
  const Lengths possible = possible_lengths(rows);
  const auto blocks = [&](int64_t at_once) { return grid_for((rows.count + at_once - 1) / at_once); };

  const Lengths thread{0, longest_thread_row};
  if (thread.meet(possible)) {
    constexpr int kHalf = kLongestThreadRow / 2;
    const auto kernel = rows.offsets           ? thread_rows<Work, kLongestThreadRow, true>
                        : rows.length <= kHalf ? thread_rows<Work, kHalf, false>
                                               : thread_rows<Work, kLongestThreadRow, false>;
    SHFCAS_LAUNCH(kernel, blocks(kThreadRows), kThreadRows, 0, stream)(rows, thread, work);
  }
  const Lengths subwarp{longest_thread_row + 1, kLongestSubWarpRow};
  if (subwarp.meet(possible)) {
    const auto kernel = subwarp_rows<Work>;
    const unsigned grid = blocks(kTeamThreads / SubWarpTeam::kSize);
    SHFCAS_LAUNCH(kernel, grid, kTeamThreads, 0, stream)(rows, subwarp, work);
  }
  const Lengths block{kLongestSubWarpRow + 1, longest};
  if (block.meet(possible)) {
    const int at_once = rows_at_once(rows);
    const auto kernel = block_rows<Work>;
    SHFCAS_LAUNCH(kernel, blocks(at_once), kTeamThreads, 0, stream)(rows, block, at_once, work);
  }
}

}  // namespace shfcas
