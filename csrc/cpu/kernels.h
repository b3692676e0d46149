// The CPU kernels that are compiled for several instruction sets, and the one to use on this processor.
#pragma once

#include <cstdint>
#include <memory>

#include "core/keys.h"
#include "core/pacs.h"
#include "core/pair_counts.h"
#include "core/rows.h"

namespace shfcas {

// A block is a cache line of lanes at every level; one row a lane.
template <class K>
constexpr int kBlockLanes = 64 / static_cast<int>(sizeof(K));

constexpr int kWordLanes = kBlockLanes<int64_t>;

// Longer rows are sorted instead of compared pair by pair.
template <class K>
constexpr int kMaxBlockLength = sizeof(K) == 4 ? 192 : 104;

// Pair counts of the rows of a block; without meaning where invalid (not 0), the row having a NaN.
template <class K>
struct BlockCounts {
  alignas(64) K discordant[kBlockLanes<K>];
  K tied_x[kBlockLanes<K>];
  K tied_y[kBlockLanes<K>];
  K tied_both[kBlockLanes<K>];
  K invalid[kBlockLanes<K>];
};

// Counts the pairs of long rows, several at a time; keeps its scratch memory.
template <class T>
class LongRowCounter {
 public:
  virtual ~LongRowCounter() = default;

  // Counts up to kWordLanes rows of at least one element: row r is x[offsets[r], offsets[r] + sizes[r]), and
  // likewise in y. Fastest if they are about equally long.
  virtual void count(const T* x, const T* y, const int64_t* offsets, const int64_t* sizes, int rows,
                     PairCounts* out) = 0;
};

template <class T>
struct Kernels {
  // Counts the pairs of rows of 1 <= n <= kMaxBlockLength elements: row l is x[offsets[l], offsets[l] + n), and
  // likewise in y. Reads up to kReadAhead elements beyond the end of each row.
  void (*count_block)(const T* x, const T* y, const int64_t* offsets, int n, BlockCounts<Key<T>>& counts);

  // For floating types: writes the conflict scores of rows [begin, end), and their summaries from summaries[0] on.
  void (*pacs_rows)(const T* rewards, const T* logprobs, const Rows& rows, int64_t begin, int64_t end, T* scores,
                    PacsSummary* summaries);

  // For rows of any length; with_classes fills what the ties of a row say beyond their number.
  std::unique_ptr<LongRowCounter<T>> (*make_long_row_counter)(bool with_classes);
};

constexpr int64_t kReadAhead = 7;  // to the end of a tile

// The kernels for this processor, or for what the environment variable SHFCAS_SIMD asks: baseline, avx2 or
// avx512.
template <class T>
const Kernels<T>& kernels();

const char* simd_level();

}  // namespace shfcas
