// CPU kernels compiled for several instruction sets, and the set chosen for this processor.
#pragma once

#include <cstdint>
#include <memory>

#include "core/keys.h"
#include "core/pacs.h"
#include "core/pair_counts.h"
#include "core/rows.h"

namespace shfcas {

// A block is one cache line of lanes at every SIMD level, one row per lane.
template <class K>
constexpr int kBlockLanes = 64 / static_cast<int>(sizeof(K));

constexpr int kWordLanes = kBlockLanes<int64_t>;

// Maximum row length of the block kernel; longer rows use LongRowCounter.
template <class K>
constexpr int kMaxBlockLength = sizeof(K) == 4 ? 256 : 104;

// Pair counts of the rows of a block. A row with a NaN has a nonzero `invalid` and meaningless counts.
template <class K>
struct BlockCounts {
  alignas(64) K discordant[kBlockLanes<K>];
  K tied_x[kBlockLanes<K>];
  K tied_y[kBlockLanes<K>];
  K tied_both[kBlockLanes<K>];
  K invalid[kBlockLanes<K>];
  bool expect_ties = false;  // the last block had tied x; kept from one block to the next
};

// Counter of the pairs of long rows, several at a time. Keeps its scratch memory between calls.
template <class T>
class LongRowCounter {
 public:
  virtual ~LongRowCounter() = default;

  // Counts up to kWordLanes rows of at least one element: row r is x[offsets[r], offsets[r] + sizes[r]), and
  // likewise in y. Rows of similar length are fastest.
  virtual void count(const T* x, const T* y, const int64_t* offsets, const int64_t* sizes, int rows,
                     PairCounts* out) = 0;
};

template <class T>
struct Kernels {
  // Counts the pairs of rows of 1 <= n <= kMaxBlockLength elements: row l is x[offsets[l], offsets[l] + n),
  // and likewise in y. Reads up to kReadAhead elements beyond the end of each row.
  void (*count_block)(const T* x, const T* y, const int64_t* offsets, int n, BlockCounts<Key<T>>& counts);

  // Writes the conflict scores of rows [begin, end), and their summaries to mean_abs[0], degenerate[0], ...
  // if they are not null. Floating types only.
  void (*pacs_rows)(const T* rewards, const T* logprobs, const Rows& rows, int64_t begin, int64_t end,
                    T* scores, T* mean_abs, bool* degenerate);

  // Writes all conflict scores of blocks of kBlockLanes<Key<T>> consecutive rows of n elements each in one
  // pass, the same as pacs_rows and count_block. n must be in has_conflict_blocks(). Floating types only.
  void (*conflict_blocks)(const T* rewards, const T* logprobs, int n, int64_t blocks, T* scores, T* mean_abs,
                          bool* degenerate, double* distance, double* tau_b);

  // For rows of any length; with_classes also fills classes, triples_x and triples_y.
  std::unique_ptr<LongRowCounter<T>> (*make_long_row_counter)(bool with_classes);
};

// Pairs of elements as bits, for a group of kPairGroup vectors. Bit (31 - p % 32) of word [p / 32][v] belongs
// to pair p of vector v. The pairs i < j are in the order (0, 1), (0, 2), ... Bits after the last pair are 0.
struct PairBits {
  const uint32_t* less;    // element i is less than element j
  const uint32_t* untied;  // the two elements differ
};

constexpr int kPairGroup = 32;
constexpr int kPairRows = 4;  // vectors compared with a group at once

struct PairBitKernels {
  int64_t max_length;  // above this length, sorting is faster (for full groups)

  // Packs `words` words of pairs, starting at pair (i, j), and advances (i, j); columns[i][v] is element i of
  // vector v.
  void (*pack_pairs)(const int32_t* columns, int64_t n, int64_t& i, int64_t& j, int64_t words, uint32_t* less,
                     uint32_t* untied);

  // Compares the vectors [first, first + kPairRows) of group a with all vectors of group b. Adds discordant
  // pairs to discordant[r][v], and pairs tied in neither vector to comparable[r][v]. comparable may be null
  // if there are no ties.
  void (*compare_pairs)(const PairBits& a, int first, const PairBits& b, int64_t words,
                        int32_t* const* discordant, int32_t* const* comparable);
};

constexpr bool has_conflict_blocks(int64_t n) { return n == 8 || n == 16; }

constexpr int64_t kReadAhead = 7;  // to the end of a tile

// Returns the kernels for the SIMD level of this processor.
template <class T>
const Kernels<T>& kernels();
const PairBitKernels& pair_bit_kernels();

}  // namespace shfcas
