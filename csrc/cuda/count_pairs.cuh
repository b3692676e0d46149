// Pair counts by comparing every pair: short rows in the registers of a thread, longer rows in the shared
// memory of a team.
//
// Ties are rare, and counting them is most of the work. The first pass counts discordant pairs as if there
// were no ties, and records whether there is one. Only then does the second pass count all kinds of pairs.
#pragma once

#include "core/keys.h"
#include "core/pair_counts.h"
#include "cuda/kernel.cuh"

namespace shfcas {

// Aligned to its size, so that both keys take one access to shared memory.
template <class K>
struct alignas(2 * sizeof(K)) KeyPair {
  K x, y;
};

// Counts of the first pass. 32 bits are enough for the pairs that one thread counts.
struct PairTally {
  unsigned discordant = 0;
  bool tied = false;

  template <class K>
  __device__ void add(const KeyPair<K>& a, const KeyPair<K>& b) {
    discordant += (a.x < b.x) != (a.y < b.y);
    tied = tied || a.x == b.x || a.y == b.y;
  }
};

// Counts of the second pass.
struct TieTally {
  unsigned discordant = 0, tied_x = 0, tied_y = 0, tied_both = 0;

  template <class K>
  __device__ void add(const KeyPair<K>& a, const KeyPair<K>& b) {
    const bool same_x = a.x == b.x, same_y = a.y == b.y;
    discordant += !same_x & !same_y & ((a.x < b.x) != (a.y < b.y));
    tied_x += same_x;
    tied_y += same_y;
    tied_both += same_x & same_y;
  }
};

// Counts a row of n <= kLongest values. The loops are unrolled, so that the keys stay in registers.
template <int kLongest, class T>
__device__ PairCounts count_in_registers(const T* x, const T* y, int n) {
  KeyPair<Key<T>> keys[kLongest] = {};
  bool invalid = false;
#pragma unroll
  for (int i = 0; i < kLongest; ++i) {
    // Selected, since a branch for every element costs more. Values of 64 bits would take 140 registers then.
    if (sizeof(T) > 4 && i >= n) continue;
    const T of_x = i < n ? x[i] : T{}, of_y = i < n ? y[i] : T{};
    invalid |= is_nan(of_x) | is_nan(of_y);
    keys[i] = {ordered_key(of_x), ordered_key(of_y)};
  }
  if (invalid) return invalid_counts();

  const auto for_each_pair = [&](auto& tally) {
#pragma unroll
    for (int j = 1; j < kLongest; ++j) {
      if (j >= n) continue;
#pragma unroll
      for (int i = 0; i < j; ++i) tally.add(keys[i], keys[j]);
    }
  };
  PairTally pairs;
  for_each_pair(pairs);
  if (!pairs.tied) return make_counts(n, pairs.discordant, 0, 0, 0);
  TieTally ties;
  for_each_pair(ties);
  return make_counts(n, ties.discordant, ties.tied_x, ties.tied_y, ties.tied_both);
}

// Returns the shared memory (in key pairs) for rows of at most `longest` values: the row and its first half.
constexpr SHFCAS_HD int pairs_in_shared(int longest) { return longest + longest / 2; }

// Counts the row of n values at x and y. Each element is compared with the n / 2 elements after it, wrapping
// around at the end. This visits every pair once, balances the load, and lets neighbouring threads read
// neighbouring keys. with_groups also counts the tie statistics for variant c and p-values.
template <class Team, class T>
__device__ PairCounts count_in_shared(const Team& team, const T* x, const T* y, int n, bool with_groups,
                                      KeyPair<Key<T>>* keys) {
  const int half = (n - 1) / 2;
  bool invalid = false;
  team.sync();  // all members have read the keys of the previous row; shuffles alone do not order memory
  for (int i = team.rank(); i < n; i += team.size()) {
    invalid = invalid || is_nan(x[i]) || is_nan(y[i]);
    keys[i] = {ordered_key(x[i]), ordered_key(y[i])};
    if (i < half) keys[n + i] = keys[i];
  }
  team.sync();

  const auto for_each_pair = [&](auto& tally) {
    for (int i = team.rank(); i < n; i += team.size()) {
      const KeyPair<Key<T>> mine = keys[i];
      // For even n, opposite elements would be compared twice.
      const int last = i + half + (n % 2 == 0 && i < n / 2);
#pragma unroll 4
      for (int j = i + 1; j <= last; ++j) tally.add(mine, keys[j]);
    }
  };
  PairTally pairs;
  for_each_pair(pairs);
  if (team.any(invalid)) return invalid_counts();
  if (!team.any(pairs.tied)) return make_counts(n, team.sum(pairs.discordant), 0, 0, 0, with_groups ? n : 0);
  TieTally ties;
  for_each_pair(ties);
  PairCounts counts = make_counts(n, team.sum(ties.discordant), team.sum(ties.tied_x), team.sum(ties.tied_y),
                                  team.sum(ties.tied_both));
  if (!with_groups) return counts;

  // In a group of t equal values, each element counts t equals and adds (t - 1) (t - 2). Exactly one of them
  // is the first.
  int64_t triples_x = 0, triples_y = 0;
  int distinct_x = 0, distinct_y = 0;
  for (int i = team.rank(); i < n; i += team.size()) {
    const KeyPair<Key<T>> mine = keys[i];
    int64_t equal_x = 0, equal_y = 0;
    for (int j = 0; j < n; ++j) {
      if (j == i) {
        distinct_x += equal_x == 0;
        distinct_y += equal_y == 0;
      }
      equal_x += keys[j].x == mine.x;
      equal_y += keys[j].y == mine.y;
    }
    triples_x += (equal_x - 1) * (equal_x - 2);
    triples_y += (equal_y - 1) * (equal_y - 2);
  }
  counts.classes = lesser(team.sum(distinct_x), team.sum(distinct_y));
  counts.triples_x = static_cast<double>(team.sum(triples_x));
  counts.triples_y = static_cast<double>(team.sum(triples_y));
  return counts;
}

}  // namespace shfcas
