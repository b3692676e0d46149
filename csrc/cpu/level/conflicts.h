// All conflict scores of short rows in one pass: PACS and pair counts from the same registers.
#pragma once

#include "cpu/block_statistics.h"
#include "cpu/level/pacs.h"
#include "cpu/level/short_rows.h"

namespace shfcas::SHFCAS_LEVEL {

// Sizes are whole tiles, so that a row is read and written without its neighbours.
template <class T, int Size>
void conflict_blocks_of(const T* rewards, const T* logprobs, int64_t blocks, T* scores, T* mean_abs,
                        bool* degenerate, double* distance, double* tau_b) {
  using K = Key<T>;
  using V = Register<T>;
  constexpr int lanes = kLanesOf<T>;
  static_assert(Size % kTile<T> == 0);
  const EqualRows<T> rows(Size);
  const V size = V{} + static_cast<T>(Size), share = share_of<T>(size);
  BlockCounts<K> counts;
  for (int64_t block = 0; block < blocks; ++block) {
    for (int lane = 0; lane < kBlockLanes<K>; lane += lanes) {
      V reward[Size], logprob[Size];
      Register<K> x[Size], y[Size];
      for (int i = 0; i < Size; i += kTile<T>) load_tile<T>(rewards + i, rows.offsets, reward + i);
      for (int i = 0; i < Size; ++i) x[i] = (Register<K>)reward[i];
      const LaneScale<T> r = centre<T, true>(reward, Size, size, share);
      for (int i = 0; i < Size; i += kTile<T>) load_tile<T>(logprobs + i, rows.offsets, logprob + i);
      for (int i = 0; i < Size; ++i) y[i] = (Register<K>)logprob[i];
      const LaneScale<T> p = centre<T, true>(logprob, Size, size, share);
      const V magnitude = subtract_scaled<T>(reward, logprob, Size, r, p, true);
      store_rows<T>(reward, Size, scores, rows.offsets);
      summarize(rewards, logprobs, rows.offsets, rows.sizes, r, p, magnitude * share, scores,
                Summaries<T>{mean_abs, degenerate});
      count_columns<T, Size>(x, y, Size, lane, counts);
      rewards += lanes * Size;
      logprobs += lanes * Size;
      scores += lanes * Size;
      mean_abs += lanes;
      degenerate += lanes;
    }
    block_distance(counts, Size, true, distance);
    block_tau(counts, Size, TauVariant::b, tau_b);
    distance += kBlockLanes<K>;
    tau_b += kBlockLanes<K>;
  }
}

template <class T>
void conflict_blocks(const T* rewards, const T* logprobs, int n, int64_t blocks, T* scores, T* mean_abs,
                     bool* degenerate, double* distance, double* tau_b) {
  (n == 8 ? conflict_blocks_of<T, 8> : conflict_blocks_of<T, 16>)(rewards, logprobs, blocks, scores, mean_abs,
                                                                  degenerate, distance, tau_b);
}

}  // namespace shfcas::SHFCAS_LEVEL
