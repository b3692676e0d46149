// PACS of every row, its gradient, and all conflict measures in one pass.
#pragma once

#include "core/pacs.h"
#include "cuda/kendall_kernels.cuh"
#include "cuda/row_kernels.cuh"

namespace shfcas {

// in: rewards, logprobs; out: scores.
template <class T>
struct PacsWork {
  using Value = T;
  using Shared = char;
  static constexpr int kInputs = 2, kOutputs = 1, kLongest = 1;
  static constexpr SHFCAS_HD int shared_size(int) { return 1; }

  const T* in[2];
  T* out[1];

  template <int>
  __device__ void thread(int64_t, int n, const T* const* values, T* const* results) const {
    write_pacs(SerialTeam{}, values[0], values[1], n, results[0]);
  }

  template <class Team>
  __device__ void team(const Team& team, int64_t, int64_t first, int64_t n, Shared*) const {
    write_pacs(team, in[0] + first, in[1] + first, n, out[0] + first);
  }
};

// in: gradient, rewards, logprobs; out: the gradients of the last two.
template <class T>
struct PacsGradientWork {
  using Value = T;
  using Shared = char;
  static constexpr int kInputs = 3, kOutputs = 2, kLongest = 1;
  static constexpr SHFCAS_HD int shared_size(int) { return 1; }

  const T* in[3];
  T* out[2];

  template <int>
  __device__ void thread(int64_t, int n, const T* const* values, T* const* results) const {
    write_z_gradient(SerialTeam{}, values[0], values[1], n, 1, results[0]);
    write_z_gradient(SerialTeam{}, values[0], values[2], n, -1, results[1]);
  }

  template <class Team>
  __device__ void team(const Team& team, int64_t, int64_t first, int64_t n, Shared*) const {
    write_z_gradient(team, in[0] + first, in[1] + first, n, 1, out[0] + first);
    write_z_gradient(team, in[0] + first, in[2] + first, n, -1, out[1] + first);
  }
};

// in: rewards, logprobs; out: scores. Counts the pairs of rows up to longest; launch_long_rows
// counts longer rows.
template <class T>
struct ConflictWork {
  using Value = T;
  using Shared = KeyPair<Key<T>>;
  static constexpr int kInputs = 2, kOutputs = 1, kLongest = kMostOfBlockRow;
  static constexpr SHFCAS_HD int shared_size(int longest) { return pairs_in_shared(longest); }

  const T* in[2];
  T* out[1];
  int longest;
  T* mean_abs;
  bool* degenerate;
  KendallOutput kendall;

  template <int kLongestRow>
  __device__ void thread(int64_t row, int n, const T* const* values, T* const* results) const {
    kendall.write(row, n,
                  count_in_registers<kLongestRow>(values[0], values[1], n));  // results overwrite values
    write_summary(row, write_pacs(SerialTeam{}, values[0], values[1], n, results[0]));
  }

  template <class Team>
  __device__ void team(const Team& team, int64_t row, int64_t first, int64_t n, Shared* shared) const {
    if (n <= longest) {
      const PairCounts counts =
          count_in_shared(team, in[0] + first, in[1] + first, static_cast<int>(n), false, shared);
      if (team.rank() == 0) kendall.write(row, n, counts);
    }
    const PacsSummary summary = write_pacs(team, in[0] + first, in[1] + first, n, out[0] + first);
    if (team.rank() == 0) write_summary(row, summary);
  }

 private:
  __device__ void write_summary(int64_t row, const PacsSummary& summary) const {
    mean_abs[row] = static_cast<Value>(summary.mean_abs);
    degenerate[row] = summary.degenerate;
  }
};

// Makes the results of values that belong to no jagged row NaN: those before the first offset and behind the
// last. Offsets in between, if they never decrease, leave out nothing.
template <class T>
__global__ void __launch_bounds__(kTeamThreads) fill_outside(Rows rows, T* result) {
  const int64_t first = rows.begin(0), last = rows.begin(rows.count);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTeamThreads;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTeamThreads + threadIdx.x;
  for (int64_t k = begin; k < first; k += step) result[k] = static_cast<T>(NAN);
  for (int64_t k = last + begin; k < rows.total; k += step) result[k] = static_cast<T>(NAN);
}

// Before the rows are computed: with bad offsets, they may write there.
template <class T>
void launch_fill_outside(const Rows& rows, T* result, cudaStream_t stream) {
  if (!rows.offsets || rows.total == 0) return;
  constexpr int64_t kMostBlocks = 512;  // there is hardly ever anything to do
  const auto kernel = fill_outside<T>;
  const int64_t blocks = (rows.total + kTeamThreads - 1) / kTeamThreads;
  SHFCAS_LAUNCH(kernel, grid_for(lesser(blocks, kMostBlocks)), kTeamThreads, 0, stream)(rows, result);
}

template <class T>
void launch_pacs(const Rows& rows, const T* rewards, const T* logprobs, T* scores, cudaStream_t stream) {
  launch_fill_outside(rows, scores, stream);
  launch_rows(rows, kLongestThreadRow, INT64_MAX, stream, PacsWork<T>{{rewards, logprobs}, {scores}});
}

template <class T>
void launch_pacs_gradient(const Rows& rows, const T* gradient, const T* rewards, const T* logprobs,
                          T* to_rewards, T* to_logprobs, cudaStream_t stream) {
  launch_fill_outside(rows, to_rewards, stream);
  launch_fill_outside(rows, to_logprobs, stream);
  launch_rows(rows, kLongestThreadRow, INT64_MAX, stream,
              PacsGradientWork<T>{{gradient, rewards, logprobs}, {to_rewards, to_logprobs}});
}

// Scratch memory as for launch_kendall.
template <class T>
void launch_conflict_scores(const Rows& rows, const T* rewards, const T* logprobs, T* scores, T* mean_abs,
                            bool* degenerate, double* distance, double* tau_b, void* scratch,
                            cudaStream_t stream) {
  KendallOutput kendall;
  kendall.distance = distance;
  kendall.tau = tau_b;
  launch_fill_outside(rows, scores, stream);
  launch_rows(
      rows, kLongestThreadRow, INT64_MAX, stream,
      ConflictWork<T>{{rewards, logprobs}, {scores}, longest_block_row(), mean_abs, degenerate, kendall});
  launch_long_rows(rows, rewards, logprobs, scratch, stream, kendall);
}

}  // namespace shfcas
