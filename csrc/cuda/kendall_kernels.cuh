// Kendall statistics of every row of a batch. The row length selects the kernel:
//   n <= 16    all pairs in the registers of a thread
//   n <= 64    all pairs by half a warp
//   n <= 256   all pairs by a block
//   above      by sorting
#pragma once

#include <cstdlib>

#include "cuda/count_pairs.cuh"
#include "cuda/row_kernels.cuh"
#include "cuda/sort_pairs.cuh"

namespace shfcas {

// The longest row of which a block compares every pair, in time n^2; longer ones are sorted. 256 is an
// estimate from counted instructions, until it is measured on a GPU.
constexpr int kLongestBlockRow = 256;
constexpr int kMostOfBlockRow = 512;  // what the block has shared memory for

// Returns kLongestBlockRow, or another length up to kMostOfBlockRow set in the environment variable
// SHFCAS_CUDA_CROSSOVER: benches/gpu_floors.py measures several.
inline int longest_block_row() {
  static const int longest = [] {
    const char* wanted = std::getenv("SHFCAS_CUDA_CROSSOVER");
    const int length = wanted ? std::atoi(wanted) : kLongestBlockRow;
    return lesser(greater(length, kLongestSubWarpRow), kMostOfBlockRow);
  }();
  return longest;
}

// Requested outputs, one entry per row; null if not requested.
struct KendallOutput {
  int64_t *concordant = nullptr, *discordant = nullptr, *tied_x = nullptr, *tied_y = nullptr,
          *tied_both = nullptr, *classes = nullptr;
  double *triples_x = nullptr, *triples_y = nullptr;
  double* tau = nullptr;
  double* distance = nullptr;
  TauVariant variant = TauVariant::b;
  bool normalized = true;

  // Returns whether an output needs the groups of equal values, not just the tied pairs.
  SHFCAS_INLINE bool needs_groups() const {
    return classes != nullptr || (tau != nullptr && variant == TauVariant::c);
  }

  SHFCAS_INLINE void write(int64_t row, int64_t n, const PairCounts& counts) const {
    if (concordant) {
      concordant[row] = counts.concordant;
      discordant[row] = counts.discordant;
      tied_x[row] = counts.tied_x;
      tied_y[row] = counts.tied_y;
      tied_both[row] = counts.tied_both;
    }
    if (classes) {
      classes[row] = counts.classes;
      triples_x[row] = counts.triples_x;
      triples_y[row] = counts.triples_y;
    }
    if (tau) tau[row] = tau_from_counts(counts, n, variant);
    if (distance) distance[row] = distance_from_counts(counts, n, normalized);
  }
};

template <class T>
struct KendallWork {
  using Value = T;
  using Shared = KeyPair<Key<T>>;
  static constexpr int kInputs = 2, kOutputs = 0, kLongest = kMostOfBlockRow;
  static constexpr SHFCAS_HD int shared_size(int longest) { return pairs_in_shared(longest); }

  const T* in[2];
  T* out[1];  // none
  KendallOutput kendall;

  template <int kLongestRow>
  __device__ void thread(int64_t row, int n, const T* const* values, T* const*) const {
    kendall.write(row, n, count_in_registers<kLongestRow>(values[0], values[1], n));
  }

  template <class Team>
  __device__ void team(const Team& team, int64_t row, int64_t first, int64_t n, Shared* shared) const {
    const PairCounts counts = count_in_shared(team, in[0] + first, in[1] + first, static_cast<int>(n),
                                              kendall.needs_groups(), shared);
    if (team.rank() == 0) kendall.write(row, n, counts);
  }
};

// Returns the bytes of scratch memory that launch_kendall needs.
template <class T>
int64_t kendall_scratch_bytes(const Rows& rows) {
  if (possible_lengths(rows).most <= longest_block_row() || rows.count == 0) return 0;
  return rows.offsets ? jagged_sort_bytes<T>(rows.total) : dense_sort_bytes<T>(rows.count, rows.length);
}

// Launches the sorting kernels for rows that are too long to compare every pair.
template <class T>
void launch_long_rows(const Rows& rows, const T* x, const T* y, void* scratch, cudaStream_t stream,
                      const KendallOutput& output) {
  if (possible_lengths(rows).most <= longest_block_row() || rows.count == 0) return;
  if (rows.offsets)
    launch_jagged_sort(rows, longest_block_row() + 1, x, y, scratch, stream, output);
  else
    launch_dense_sort(rows.count, rows.length, x, rows.length, y, scratch, stream, output);
}

template <class T>
void launch_kendall(const Rows& rows, const T* x, const T* y, void* scratch, cudaStream_t stream,
                    const KendallOutput& output) {
  const int longest_thread_row = output.needs_groups() ? -1 : kLongestThreadRow;
  launch_rows(rows, longest_thread_row, longest_block_row(), stream, KendallWork<T>{{x, y}, {}, output});
  launch_long_rows(rows, x, y, scratch, stream, output);
}

}  // namespace shfcas
