// Pair counts of rows of any length, O(N log^2 N) (Knight 1966). Sort the pairs of keys by x, then y; equal
// neighbours are the ties. Then merge-sort their y. A key that passes others from the right half to the left
// is discordant with each of them.
//
// Both sorts go tile by tile. A tile of kTile keys is sorted in shared memory, level by level. On the levels
// above, a tile is kTile keys of the *merged* run. Bisection (merge path) finds the keys of the two halves in
// the tile. The place of each key follows from its rank in the other half, which is also the number of keys
// that it passes.
//
//   dense rows   one grid per level, a block per tile of any row: one row of millions fills the device
//   jagged rows  a block per row, tile after tile: only the device knows the number of tiles
//
// The pairs of one huge dense row are sorted by radix if they fit into 64 bits. For wider pairs, a radix pass
// for each of their 16 bytes would move as many bytes as merging. The sort of y must merge in order to count.
#pragma once

#include "core/keys.h"
#include "core/pair_counts.h"
#include "core/rows.h"
#include "cuda/kernel.cuh"
#include "cuda/radix_sort.cuh"
#include "cuda/row_kernels.cuh"
#include "cuda/teams.cuh"

namespace shfcas {

constexpr int kSortThreads = 256;
constexpr int kTile = 1024;

using SortTeam = BlockTeam<kSortThreads>;

// Two keys as one value that sorts by x, then by y.
struct WidePair {
  int64_t x, y;
  SHFCAS_INLINE bool operator<(const WidePair& other) const {
    return x != other.x ? x < other.x : y < other.y;
  }
};

template <class K>
struct JoinedKeys {
  using type = WidePair;
};
template <>
struct JoinedKeys<int32_t> {
  using type = uint64_t;
};
template <class T>
using Joined = typename JoinedKeys<Key<T>>::type;

constexpr uint32_t kSign = 1u << 31;  // converts signed to unsigned order

SHFCAS_INLINE WidePair join(int64_t x, int64_t y) { return {x, y}; }
SHFCAS_INLINE int64_t x_of(const WidePair& keys) { return keys.x; }
SHFCAS_INLINE int64_t y_of(const WidePair& keys) { return keys.y; }
SHFCAS_INLINE uint64_t join(int32_t x, int32_t y) {
  return static_cast<uint64_t>(static_cast<uint32_t>(x) ^ kSign) << 32 | (static_cast<uint32_t>(y) ^ kSign);
}
SHFCAS_INLINE int32_t x_of(uint64_t keys) {
  return static_cast<int32_t>(static_cast<uint32_t>(keys >> 32) ^ kSign);
}
SHFCAS_INLINE int32_t y_of(uint64_t keys) {
  return static_cast<int32_t>(static_cast<uint32_t>(keys) ^ kSign);
}

// Groups of equal keys in a sorted array. Triples are stored as low + 2^32 high, 64 bits each.
struct Groups {
  Total distinct, pairs, low, high;
  SHFCAS_INLINE double triples() const {  // t (t - 1) (t - 2), summed over the groups of t
    return 6 * (static_cast<double>(high) * 4294967296.0 + static_cast<double>(low));
  }
};

struct SortTotals {
  Total invalid, discordant, tied_both;
  Groups x, y;

  SHFCAS_INLINE PairCounts counts(int64_t n) const {
    if (invalid) return invalid_counts();
    return make_counts(n, static_cast<int64_t>(discordant), static_cast<int64_t>(x.pairs),
                       static_cast<int64_t>(y.pairs), static_cast<int64_t>(tied_both),
                       static_cast<int64_t>(lesser(x.distinct, y.distinct)), x.triples(), y.triples());
  }
};

// Returns how many of count sorted keys are less than key.
template <class Index, class E>
__device__ Index num_less(const E* sorted, Index count, const E& key) {
  Index begin = 0;
  while (begin < count) {
    const Index middle = begin + (count - begin) / 2;
    if (sorted[middle] < key)
      begin = middle + 1;
    else
      count = middle;
  }
  return begin;
}

// Returns how many of count sorted keys are not greater than key.
template <class Index, class E>
__device__ Index num_not_greater(const E* sorted, Index count, const E& key) {
  Index begin = 0;
  while (begin < count) {
    const Index middle = begin + (count - begin) / 2;
    if (key < sorted[middle])
      count = middle;
    else
      begin = middle + 1;
  }
  return begin;
}

// Returns how many of the first `taken` keys of the merged run are from the left half. Of equal keys, those
// from the left half are first.
template <class E>
__device__ int64_t merge_split(const E* left, int64_t lefts, const E* right, int64_t rights, int64_t taken) {
  int64_t begin = greater<int64_t>(0, taken - rights), end = lesser(taken, lefts);
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (right[taken - 1 - middle] < left[middle])
      end = middle;
    else
      begin = middle + 1;
  }
  return begin;
}

// Sorts `size` keys into `to`. They are in the first half of buffer, 2 * kTile keys in shared memory. Adds
// the pairs in strictly descending order to passed. On return, no thread uses the buffer any more.
template <class E>
__device__ void sort_tile(E* buffer, int size, E* to, Total& passed) {
  E *from = buffer, *other = buffer + kTile;
  __syncthreads();
  for (int width = 1; width < size; width *= 2) {
    for (int i = threadIdx.x; i < size; i += kSortThreads) {
      const int begin = i & -(2 * width), middle = lesser(begin + width, size),
                end = lesser(middle + width, size);
      const E key = from[i];
      if (i < middle) {
        const int rank = num_less(from + middle, end - middle, key);
        passed += rank;
        other[i + rank] = key;
      } else {
        other[i - width + num_not_greater(from + begin, width, key)] = key;
      }
    }
    __syncthreads();
    E* sorted = other;
    other = from;
    from = sorted;
  }
  for (int i = threadIdx.x; i < size; i += kSortThreads) to[i] = from[i];
  __syncthreads();
}

// Writes tile number `tile` of the level that merges runs of `width` keys, for a row of n keys. Counts
// passed pairs and uses the buffer like sort_tile.
template <class E>
__device__ void merge_tile(const E* from, E* to, int64_t n, int64_t width, int64_t tile, E* buffer,
                           Total& passed) {
  SHFCAS_SHARED(int64_t, split, 2);
  const int64_t out = tile * kTile, out_end = lesser(out + kTile, n);
  const int64_t begin = out & -(2 * width), middle = lesser(begin + width, n),
                end = lesser(middle + width, n);
  if (threadIdx.x < 2)
    split[threadIdx.x] = merge_split(from + begin, middle - begin, from + middle, end - middle,
                                     (threadIdx.x == 0 ? out : out_end) - begin);
  __syncthreads();
  // Clamped, since rows with bad offsets may overlap. The result is then meaningless, but within bounds.
  const int size = static_cast<int>(out_end - out);
  const int lefts = static_cast<int>(lesser<int64_t>(greater<int64_t>(split[1] - split[0], 0), size));
  const int64_t left = begin + split[0], right_before = out - left, right = middle + right_before;
  for (int i = threadIdx.x; i < size; i += kSortThreads)
    buffer[i] = from[lesser(i < lefts ? left + i : right + i - lefts, n - 1)];
  __syncthreads();

  for (int i = threadIdx.x; i < size; i += kSortThreads) {
    const E key = buffer[i];
    if (i < lefts) {
      const int rank = num_less(buffer + lefts, size - lefts, key);
      passed += right_before + rank;
      buffer[kTile + i + rank] = key;
    } else {
      buffer[kTile + i - lefts + num_not_greater(buffer, lefts, key)] = key;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < size; i += kSortThreads) to[out + i] = buffer[kTile + i];
  __syncthreads();
}

// Adds the groups of a tile of sorted keys, compared by `part` of each key. A key adds the pairs and triples
// that it forms with equal keys before it.
template <class E, class Part>
__device__ void add_groups(const E* sorted, int64_t n, int64_t tile, const Part& part, Groups& groups) {
  const int64_t end = lesser((tile + 1) * kTile, n);
  for (int64_t i = tile * kTile + threadIdx.x; i < end; i += kSortThreads) {
    const auto key = part(sorted[i]);
    if (i == 0 || part(sorted[i - 1]) < key) {
      ++groups.distinct;
      continue;
    }
    int64_t begin = 0, first = i;  // first: the first key equal to this one
    while (begin < first) {
      const int64_t middle = begin + (first - begin) / 2;
      if (part(sorted[middle]) < key)
        begin = middle + 1;
      else
        first = middle;
    }
    const Total before = static_cast<Total>(i - first), triples = before * (before - 1) / 2;
    groups.pairs += before;
    groups.low += triples & 0xffffffffu;
    groups.high += triples >> 32;
  }
}

// Adds the counts of the threads of a block to the totals of a row, in shared or global memory.
__device__ inline void add_to(Total& total, Total mine) {
  mine = SortTeam{}.sum(mine);
  if (threadIdx.x == 0 && mine > 0) atomicAdd(&total, mine);
}

__device__ inline void add_to(Groups& groups, const Groups& mine) {
  add_to(groups.distinct, mine.distinct);
  add_to(groups.pairs, mine.pairs);
  add_to(groups.low, mine.low);
  add_to(groups.high, mine.high);
}

// Steps of a tile, common to dense and jagged rows.

template <class T>
__device__ void join_pairs_of_tile(const T* x, const T* y, int size, Joined<T>* to, SortTotals& totals) {
  Total invalid = 0;
  for (int i = threadIdx.x; i < size; i += kSortThreads) {
    invalid += is_nan(x[i]) || is_nan(y[i]);
    to[i] = join(ordered_key(x[i]), ordered_key(y[i]));
  }
  add_to(totals.invalid, invalid);
}

template <class T>
__device__ void sort_pairs_of_tile(const T* x, const T* y, int64_t n, int64_t tile, Joined<T>* buffer,
                                   Joined<T>* to, SortTotals& totals) {
  const int64_t begin = tile * kTile;
  const int size = static_cast<int>(lesser<int64_t>(kTile, n - begin));
  join_pairs_of_tile(x + begin, y + begin, size, buffer, totals);
  Total passed = 0;
  sort_tile(buffer, size, to + begin, passed);  // passed is not needed: these are no inversions of y
}

template <class T>
__device__ void sort_y_of_tile(const Joined<T>* pairs, int64_t n, int64_t tile, Joined<T>* buffer, Key<T>* to,
                               SortTotals& totals) {
  Groups of_x{}, of_both{};
  add_groups(pairs, n, tile, [](const Joined<T>& keys) { return x_of(keys); }, of_x);
  add_groups(pairs, n, tile, [](const Joined<T>& keys) { return keys; }, of_both);
  add_to(totals.x, of_x);
  add_to(totals.tied_both, of_both.pairs);

  const int64_t begin = tile * kTile;
  const int size = static_cast<int>(lesser<int64_t>(kTile, n - begin));
  auto* keys = reinterpret_cast<Key<T>*>(buffer);
  for (int i = threadIdx.x; i < size; i += kSortThreads) keys[i] = y_of(pairs[begin + i]);
  Total passed = 0;
  sort_tile(keys, size, to + begin, passed);
  add_to(totals.discordant, passed);
}

template <class K>
__device__ void merge_y_of_tile(const K* from, K* to, int64_t n, int64_t width, int64_t tile, K* buffer,
                                SortTotals& totals) {
  Total passed = 0;
  merge_tile(from, to, n, width, tile, buffer, passed);
  add_to(totals.discordant, passed);
}

template <class K>
__device__ void group_y_of_tile(const K* keys, int64_t n, int64_t tile, SortTotals& totals) {
  Groups of_y{};
  add_groups(keys, n, tile, [](K key) { return key; }, of_y);
  add_to(totals.y, of_y);
}

SHFCAS_INLINE int64_t num_tiles(int64_t n) { return (n + kTile - 1) / kTile; }

// Jagged rows, a block per row. Row r uses the two halves of scratch, from the offset of its values on.

template <class T, class Sink>
__global__ void __launch_bounds__(kSortThreads, 3)
    sort_rows(Rows rows, Lengths lengths, int at_once, const T* x, const T* y, Joined<T>* scratch,
              Sink sink) {
  SHFCAS_SHARED(Joined<T>, buffer, 2 * kTile);
  SHFCAS_SHARED(SortTotals, totals, 1);
  auto* key_buffer = reinterpret_cast<Key<T>*>(buffer);
  for_each_row_of_block<kSortThreads>(rows, lengths, at_once, [&](int64_t row) {
    const int64_t first = rows.begin(row), n = rows.size(row), tiles = num_tiles(n);
    Joined<T>*pairs = scratch + first, *free = scratch + rows.total + first;
    if (threadIdx.x == 0) *totals = {};
    for (int64_t t = 0; t < tiles; ++t)
      sort_pairs_of_tile(x + first, y + first, n, t, buffer, pairs, *totals);
    for (int64_t width = kTile; width < n; width *= 2) {
      Total passed = 0;
      for (int64_t t = 0; t < tiles; ++t) merge_tile(pairs, free, n, width, t, buffer, passed);
      Joined<T>* merged = free;
      free = pairs;
      pairs = merged;
    }
    Key<T>*keys = reinterpret_cast<Key<T>*>(free), *free_keys = keys + n;
    for (int64_t t = 0; t < tiles; ++t) sort_y_of_tile<T>(pairs, n, t, buffer, keys, *totals);
    for (int64_t width = kTile; width < n; width *= 2) {
      for (int64_t t = 0; t < tiles; ++t) merge_y_of_tile(keys, free_keys, n, width, t, key_buffer, *totals);
      Key<T>* merged = free_keys;
      free_keys = keys;
      keys = merged;
    }
    for (int64_t t = 0; t < tiles; ++t) group_y_of_tile(keys, n, t, *totals);
    if (threadIdx.x == 0) sink.write(row, n, totals->counts(n));
  });
}

// Dense rows, a block per tile. Row r uses elements r * n, ... of every scratch array.

struct TileOfRow {
  int64_t row, tile, first;  // first: offset of the row
  __device__ explicit TileOfRow(int64_t n)
      : row(blockIdx.x / num_tiles(n)), tile(blockIdx.x % num_tiles(n)), first(row * n) {}
};

// Row r of x begins at x + r * x_step; a step of 0 pairs one x with many y.
template <class T>
__global__ void __launch_bounds__(kSortThreads)
    sort_pair_tiles(const T* x, int64_t x_step, const T* y, int64_t n, Joined<T>* pairs, SortTotals* totals) {
  SHFCAS_SHARED(Joined<T>, buffer, 2 * kTile);
  const TileOfRow at(n);
  sort_pairs_of_tile(x + at.row * x_step, y + at.first, n, at.tile, buffer, pairs + at.first, totals[at.row]);
}

template <class T>
__global__ void __launch_bounds__(kSortThreads)
    join_pair_tiles(const T* x, const T* y, int64_t n, Joined<T>* pairs, SortTotals* totals) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile;
  join_pairs_of_tile(x + begin, y + begin, static_cast<int>(lesser<int64_t>(kTile, n - begin)), pairs + begin,
                     *totals);
}

template <class E>
__global__ void __launch_bounds__(kSortThreads)
    merge_pair_tiles(const E* from, E* to, int64_t n, int64_t width) {
  SHFCAS_SHARED(E, buffer, 2 * kTile);
  const TileOfRow at(n);
  Total passed = 0;
  merge_tile(from + at.first, to + at.first, n, width, at.tile, buffer, passed);
}

template <class T>
__global__ void __launch_bounds__(kSortThreads)
    sort_y_tiles(const Joined<T>* pairs, int64_t n, Key<T>* keys, SortTotals* totals) {
  SHFCAS_SHARED(Joined<T>, buffer, 2 * kTile);
  const TileOfRow at(n);
  sort_y_of_tile<T>(pairs + at.first, n, at.tile, buffer, keys + at.first, totals[at.row]);
}

template <class K>
__global__ void __launch_bounds__(kSortThreads)
    merge_y_tiles(const K* from, K* to, int64_t n, int64_t width, SortTotals* totals) {
  SHFCAS_SHARED(K, buffer, 2 * kTile);
  const TileOfRow at(n);
  merge_y_of_tile(from + at.first, to + at.first, n, width, at.tile, buffer, totals[at.row]);
}

template <class K>
__global__ void __launch_bounds__(kSortThreads) group_y_tiles(const K* keys, int64_t n, SortTotals* totals) {
  const TileOfRow at(n);
  group_y_of_tile(keys + at.first, n, at.tile, totals[at.row]);
}

template <class Sink>
__global__ void __launch_bounds__(kSortThreads)
    write_sorted(int64_t first_row, int64_t count, int64_t n, const SortTotals* totals, Sink sink) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kSortThreads + threadIdx.x;
  if (row < count) sink.write(first_row + row, n, totals[row].counts(n));
}

// A template like all kernels, so that several files may include its definition.
template <class Totals>
__global__ void __launch_bounds__(kSortThreads) clear_totals(Totals* totals, int64_t count) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kSortThreads + threadIdx.x;
  if (row < count) totals[row] = {};
}

// Scratch memory. Dense rows are sorted in chunks that fill the device. Jagged rows need memory for all
// values, since any row may be long.

// Returns how many dense rows are sorted at a time.
inline int64_t dense_rows_at_once(int64_t count, int64_t n) {
  return lesser(count, greater<int64_t>(1, SHFCAS_KEYS_AT_ONCE / n));
}

template <class T>
constexpr bool kFitsRadix = sizeof(Joined<T>) == sizeof(uint64_t);

template <class T>
bool by_radix(int64_t rows_at_once, int64_t n) {
  return kFitsRadix<T> && rows_at_once == 1 && n >= SHFCAS_LEAST_BY_RADIX;
}

template <class T>
int64_t dense_sort_bytes(int64_t count, int64_t n) {
  const int64_t most = dense_rows_at_once(count, n);
  return most * static_cast<int64_t>(sizeof(SortTotals) + 2 * n * sizeof(Joined<T>)) +
         (by_radix<T>(most, n) ? radix_scratch_bytes(n) : 0);
}

template <class T>
int64_t jagged_sort_bytes(int64_t total) {
  return 2 * total * static_cast<int64_t>(sizeof(Joined<T>));
}

// Joins and sorts the pairs of some rows, by radix if radix_scratch is given. Both arrays hold all pairs.
// Returns the array with the result.
template <class T>
Joined<T>* launch_pair_sort(int64_t rows, int64_t n, const T* x, int64_t x_step, const T* y, Joined<T>* pairs,
                            Joined<T>* other, void* radix_scratch, SortTotals* totals, cudaStream_t stream) {
  const auto tiles = static_cast<unsigned>(rows * num_tiles(n));
  if constexpr (kFitsRadix<T>) {
    if (radix_scratch) {
      const auto join_pairs = join_pair_tiles<T>;
      SHFCAS_LAUNCH(join_pairs, tiles, kSortThreads, 0, stream)(x, y, n, pairs, totals);
      return radix_sort(pairs, other, n, radix_scratch, radix_scratch_bytes(n), stream);
    }
  }
  const auto sort_pairs = sort_pair_tiles<T>;
  SHFCAS_LAUNCH(sort_pairs, tiles, kSortThreads, 0, stream)(x, x_step, y, n, pairs, totals);
  const auto merge_pairs = merge_pair_tiles<Joined<T>>;
  for (int64_t width = kTile; width < n; width *= 2) {
    SHFCAS_LAUNCH(merge_pairs, tiles, kSortThreads, 0, stream)(pairs, other, n, width);
    Joined<T>* merged = other;
    other = pairs;
    pairs = merged;
  }
  return pairs;
}

template <class T, class Sink>
void launch_dense_sort(int64_t count, int64_t n, const T* x, int64_t x_step, const T* y, void* scratch,
                       cudaStream_t stream, const Sink& sink) {
  const int64_t most = dense_rows_at_once(count, n);
  auto* totals = static_cast<SortTotals*>(scratch);
  auto* const pairs = reinterpret_cast<Joined<T>*>(totals + most);
  auto* const other = pairs + most * n;
  void* const radix_scratch = by_radix<T>(most, n) ? other + most * n : nullptr;
  for (int64_t first = 0; first < count; first += most) {
    const int64_t rows = lesser(most, count - first);
    const auto tiles = static_cast<unsigned>(rows * num_tiles(n));
    const auto row_blocks = static_cast<unsigned>((rows + kSortThreads - 1) / kSortThreads);

    const auto clear = clear_totals<SortTotals>;
    SHFCAS_LAUNCH(clear, row_blocks, kSortThreads, 0, stream)(totals, rows);
    const Joined<T>* sorted = launch_pair_sort(rows, n, x + first * x_step, x_step, y + first * n, pairs,
                                               other, radix_scratch, totals, stream);

    auto* keys = reinterpret_cast<Key<T>*>(sorted == pairs ? other : pairs);
    auto* free_keys = keys + most * n;
    const auto sort_y = sort_y_tiles<T>;
    SHFCAS_LAUNCH(sort_y, tiles, kSortThreads, 0, stream)(sorted, n, keys, totals);
    const auto merge_y = merge_y_tiles<Key<T>>;
    for (int64_t width = kTile; width < n; width *= 2) {
      SHFCAS_LAUNCH(merge_y, tiles, kSortThreads, 0, stream)(keys, free_keys, n, width, totals);
      auto* merged = free_keys;
      free_keys = keys;
      keys = merged;
    }
    const auto group_y = group_y_tiles<Key<T>>;
    SHFCAS_LAUNCH(group_y, tiles, kSortThreads, 0, stream)(keys, n, totals);
    const auto write = write_sorted<Sink>;
    SHFCAS_LAUNCH(write, row_blocks, kSortThreads, 0, stream)(first, rows, n, totals, sink);
  }
}

template <class T, class Sink>
void launch_jagged_sort(const Rows& rows, int64_t least, const T* x, const T* y, void* scratch,
                        cudaStream_t stream, const Sink& sink) {
  const int at_once = rows_at_once(rows);
  const auto kernel = sort_rows<T, Sink>;
  SHFCAS_LAUNCH(kernel, grid_for((rows.count + at_once - 1) / at_once), kSortThreads, 0, stream)
  (rows, Lengths{least, rows.total}, at_once, x, y, static_cast<Joined<T>*>(scratch), sink);
}

}  // namespace shfcas
