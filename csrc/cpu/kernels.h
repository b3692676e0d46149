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
constexpr int kMaxBlockLength = sizeof(K) == 4 ? 256 : 104;

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
  // Counts the pairs of rows of 1 <= n <= kMaxBlockLength elements: row l is x[offsets[l], offsets[l] + n),
  // and likewise in y. Reads up to kReadAhead elements beyond the end of each row.
  void (*count_block)(const T* x, const T* y, const int64_t* offsets, int n, BlockCounts<Key<T>>& counts);

  // For floating types: writes the conflict scores of rows [begin, end), and their summaries from
  // summaries[0] on.
  void (*pacs_rows)(const T* rewards, const T* logprobs, const Rows& rows, int64_t begin, int64_t end,
                    T* scores, PacsSummary* summaries);

  // For rows of any length; with_classes fills what the ties of a row say beyond their number.
  std::unique_ptr<LongRowCounter<T>> (*make_long_row_counter)(bool with_classes);
};

// Pairs of elements as bits, for a group of kPairGroup vectors: bit (31 - p % 32) of word [p / 32][v] is that
// of pair p of vector v. The pairs i < j are in the order (0, 1), (0, 2), ... Bits behind the last pair are
// 0.
struct PairBits {
  const uint32_t* less;    // element i is less than element j
  const uint32_t* untied;  // they differ
};

constexpr int kPairGroup = 32;
constexpr int kPairRows = 4;  // vectors that are compared with a group at once

struct PairBitKernels {
  int64_t max_length;  // longer vectors are sorted at less cost, if groups are full

  // Packs `words` words of the pairs from (i, j) on, and moves (i, j) on; columns[i][v] is element i of
  // vector v.
  void (*pack_pairs)(const int32_t* columns, int64_t n, int64_t& i, int64_t& j, int64_t words, uint32_t* less,
                     uint32_t* untied);

  // For the vectors [first, first + kPairRows) of group a and all of group b, adds to discordant[r][v] the
  // pairs that they order oppositely and to comparable[r][v] those tied in neither; comparable may be null if
  // there are no ties.
  void (*compare_pairs)(const PairBits& a, int first, const PairBits& b, int64_t words,
                        int32_t* const* discordant, int32_t* const* comparable);
};

constexpr int64_t kReadAhead = 7;  // to the end of a tile

// Those for the SIMD level of this processor.
template <class T>
const Kernels<T>& kernels();
const PairBitKernels& pair_bit_kernels();

}  // namespace shfcas
