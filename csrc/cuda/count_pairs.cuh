// Pair counts by comparing every pair: of a short row in the registers of a thread, or of a row in the shared
// memory of a team.
//
// Ties are rare, and counting them is most of the work. So the first pass counts what is discordant if
// nothing is tied, and notes whether anything is; only then the second pass counts all there is.
#pragma once

#include "core/keys.h"
#include "core/pair_counts.h"
#include "cuda/kernel.cuh"

namespace shfcas {

template <class K>
struct KeyPair {
  K x, y;
};

// 32 bits are enough for the pairs that a thread sees of rows that are counted like this.
struct PairTally {
  unsigned discordant = 0;
  bool tied = false;

  template <class K>
  __device__ void add(const KeyPair<K>& a, const KeyPair<K>& b) {
    discordant += (a.x < b.x) != (a.y < b.y);
    tied = tied || a.x == b.x || a.y == b.y;
  }
};

struct TieTally {
  unsigned discordant = 0, tied_x = 0, tied_y = 0, tied_both = 0;

  template <class K>
  __device__ void add(const KeyPair<K>& a, const KeyPair<K>& b) {
    const bool same_x = a.x == b.x, same_y = a.y == b.y;
    discordant += !same_x && !same_y && (a.x < b.x) != (a.y < b.y);
    tied_x += same_x;
    tied_y += same_y;
    tied_both += same_x && same_y;
  }
};

// A row of n <= kLongest values. The loops are unrolled, so that the keys stay in registers.
template <int kLongest, class T>
__device__ PairCounts count_in_registers(const T* x, const T* y, int n) {
  KeyPair<Key<T>> keys[kLongest] = {};
  bool invalid = false;
#pragma unroll
  for (int i = 0; i < kLongest; ++i) {
    if (i >= n) continue;
    invalid = invalid || is_nan(x[i]) || is_nan(y[i]);
    keys[i] = {ordered_key(x[i]), ordered_key(y[i])};
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

// Shared memory for a row that is no longer: the row, and its first half once more.
constexpr SHFCAS_HD int pairs_in_shared(int longest) { return longest + longest / 2; }

// The row of n values at x and y. Each element is compared with the n / 2 that come after it, the first one
// after the last, which meets every pair once, keeps all members equally busy and lets neighbours read
// neighbours. with_groups also counts what variant c and p-values ask for.
template <class Team, class T>
__device__ PairCounts count_in_shared(const Team& team, const T* x, const T* y, int n, bool with_groups,
                                      KeyPair<Key<T>>* keys) {
  const int half = (n - 1) / 2;
  bool invalid = false;
  team.sync();  // nobody reads the keys of the row before any more; shuffles alone order no memory
  for (int i = team.rank(); i < n; i += team.size()) {
    invalid = invalid || is_nan(x[i]) || is_nan(y[i]);
    keys[i] = {ordered_key(x[i]), ordered_key(y[i])};
    if (i < half) keys[n + i] = keys[i];
  }
  team.sync();

  const auto for_each_pair = [&](auto& tally) {
    for (int i = team.rank(); i < n; i += team.size()) {
      const KeyPair<Key<T>> mine = keys[i];
      // Of an even number, those opposite each other would meet twice.
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

  // In a group of t, each of t elements has t equals and adds (t - 1) (t - 2); one of them is the first.
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
