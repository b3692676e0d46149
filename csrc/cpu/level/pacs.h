// PACS of consecutive rows, in one of three ways. Short rows: one row per lane. Longer rows: registers run
// along the row, and several rows are processed in step, so that their sums and roots are computed together.
// The longest rows: one at a time.
//
// The first element of a row is subtracted before its mean. This keeps the digits of large numbers that are
// close together, such as log-probabilities. Single precision is then enough for rows of floats. Long rows
// are summed in chunks, and the sums of the chunks are added in double. A float row whose squares overflow is
// recomputed in double.
#pragma once

#include "core/pacs.h"
#include "core/rows.h"
#include "core/team.h"
#include "cpu/kernels.h"
#include "cpu/level/registers.h"

namespace shfcas::SHFCAS_LEVEL {

constexpr int64_t kMaxLaneRow = 32;
constexpr int64_t kMaxStepRow = 1024;
constexpr int64_t kChunk = 256;  // elements that single precision sums accurately, even sequentially

// Scores one long row.
template <class T>
inline PacsSummary pacs_long_row(const T* rewards, const T* logprobs, int64_t n, T* scores) {
  const T reward_origin = rewards[0], logprob_origin = logprobs[0];
  const double size = static_cast<double>(n);
  double reward_total = 0, logprob_total = 0, magnitude = 0;
  const auto for_each_chunk = [n](const auto& chunk) {
    for (int64_t begin = 0; begin < n; begin += kChunk) chunk(begin, begin + kChunk < n ? begin + kChunk : n);
  };
  for_each_chunk([&](int64_t begin, int64_t end) {
    T reward_sum = 0, logprob_sum = 0;
    SHFCAS_SIMD_SUM(reward_sum, logprob_sum)
    for (int64_t i = begin; i < end; ++i) {
      reward_sum += rewards[i] - reward_origin;
      logprob_sum += logprobs[i] - logprob_origin;
    }
    reward_total += static_cast<double>(reward_sum);
    logprob_total += static_cast<double>(logprob_sum);
  });
  const T reward_mean = static_cast<T>(reward_total / size),
          logprob_mean = static_cast<T>(logprob_total / size);

  reward_total = logprob_total = 0;
  for_each_chunk([&](int64_t begin, int64_t end) {
    T reward_sum = 0, logprob_sum = 0;
    SHFCAS_SIMD_SUM(reward_sum, logprob_sum)
    for (int64_t i = begin; i < end; ++i) {
      const T reward = rewards[i] - reward_origin - reward_mean,
              logprob = logprobs[i] - logprob_origin - logprob_mean;
      reward_sum += reward * reward;
      logprob_sum += logprob * logprob;
    }
    reward_total += static_cast<double>(reward_sum);
    logprob_total += static_cast<double>(logprob_sum);
  });
  if (!std::isfinite(reward_total + logprob_total))
    return write_pacs(SerialTeam{}, rewards, logprobs, n, scores);

  const double reward_std = sqrt(reward_total / size), logprob_std = sqrt(logprob_total / size);
  const bool reward_flat = reward_std < kMinStd, logprob_flat = logprob_std < kMinStd;
  const T reward_scale = reward_flat ? T{0} : static_cast<T>(1 / reward_std),
          logprob_scale = logprob_flat ? T{0} : static_cast<T>(1 / logprob_std);
  for_each_chunk([&](int64_t begin, int64_t end) {
    T sum = 0;
    SHFCAS_SIMD_SUM(sum)
    for (int64_t i = begin; i < end; ++i) {
      const T score = (rewards[i] - reward_origin - reward_mean) * reward_scale -
                      (logprobs[i] - logprob_origin - logprob_mean) * logprob_scale;
      scores[i] = score;
      sum += score < 0 ? -score : score;
    }
    magnitude += static_cast<double>(sum);
  });
  return {magnitude / size, reward_flat || logprob_flat};
}

template <class T>
struct LaneScale {
  Register<T> mean_square, scale;
};

// The square root of each lane.
template <class V>
SHFCAS_INLINE V square_root(const V& v) {
  constexpr int lanes = sizeof(V) / sizeof(v[0]);
  std::remove_cv_t<std::remove_reference_t<decltype(v[0])>> values[lanes];
  store(values, v);
  for (int l = 0; l < lanes; ++l) values[l] = std::sqrt(values[l]);
  return load<V>(values);
}

template <class T>
SHFCAS_INLINE LaneScale<T> lane_scale(const Register<T>& mean_square) {
  using V = Register<T>;
#if SHFCAS_REGISTER_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    // 1 / sqrt to 14 bits, and a step of Newton's method: relative error below 2^-22, a sixth of the time.
    constexpr float flat = 9.99999888e-13f;  // the least number whose root is not below kMinStd
    const V root = (V)_mm512_maskz_rsqrt14_ps(0xffff, (__m512)mean_square);
    const V refined = root * (1.5f - 0.5f * mean_square * root * root);
    return {mean_square, mean_square < flat ? V{} : refined};
  }
#endif
  const V std = square_root(mean_square);
  return {mean_square, std < static_cast<T>(kMinStd) ? V{} : (V{} + 1) / std};
}

// Returns the sum of term(0), ..., term(n - 1), in two chains of additions.
template <class V, class F>
SHFCAS_INLINE V sum_of(int n, const F& term) {
  V even = {}, odd = {};
  int i = 0;
  for (; i + 1 < n; i += 2) {
    even += term(i);
    odd += term(i + 1);
  }
  if (i < n) even += term(i);
  return even + odd;
}

// Replaces v[0, n) by the deviations from the mean; elements beyond the size of a row become 0. `share` is
// 1 / size.
template <class T, bool Equal>
SHFCAS_INLINE LaneScale<T> centre(Register<T>* v, int n, const Register<T>& sizes, const Register<T>& share) {
  using V = Register<T>;
  const V origin = v[0];
  const V sum = sum_of<V>(n, [&](int i) __attribute__((always_inline)) {
    v[i] -= origin;
    if (!Equal) v[i] = static_cast<T>(i) < sizes ? v[i] : V{};
    return v[i];
  });
  const V mean = sum * share;
  const V squares = sum_of<V>(n, [&](int i) __attribute__((always_inline)) {
    v[i] -= mean;
    if (!Equal) v[i] = static_cast<T>(i) < sizes ? v[i] : V{};
    return v[i] * v[i];
  });
  LaneScale<T> result = lane_scale<T>(squares * share);
  result.scale = sizes < 2 ? V{} : result.scale;
  return result;
}

template <class T>
struct BytesOf {
  typedef uint8_t type __attribute__((vector_size(kLanesOf<T>)));
};

// Summaries of consecutive rows, or null where they are not wanted.
template <class T>
struct Summaries {
  T* mean_abs;
  bool* degenerate;

  SHFCAS_INLINE bool wanted() const { return mean_abs != nullptr; }
  SHFCAS_INLINE void set(int64_t row, const PacsSummary& summary) const {
    if (!wanted()) return;
    mean_abs[row] = static_cast<T>(summary.mean_abs);
    degenerate[row] = summary.degenerate;
  }
  SHFCAS_INLINE Summaries from(int64_t row) const {
    return wanted() ? Summaries{mean_abs + row, degenerate + row} : *this;
  }
};

// Computes the rows of the lanes of a mask in double. Rare: kept out of the code of its callers.
template <class T>
__attribute__((noinline, cold)) void recompute(const T* rewards, const T* logprobs, const int64_t* offsets,
                                               const int64_t* sizes, const Register<Key<T>>& mask, T* scores,
                                               const Summaries<T>& summaries) {
  for (int l = 0; l < kLanesOf<T>; ++l)
    if (mask[l] != 0)
      summaries.set(l, write_pacs(SerialTeam{}, rewards + offsets[l], logprobs + offsets[l], sizes[l],
                                  scores + offsets[l]));
}

// Writes the summaries of a register of rows, and recomputes rows whose squares overflow in double.
template <class T>
SHFCAS_INLINE void summarize(const T* rewards, const T* logprobs, const int64_t* offsets,
                             const int64_t* sizes, const LaneScale<T>& r, const LaneScale<T>& p,
                             const Register<T>& mean_abs, T* scores, const Summaries<T>& summaries) {
  if (summaries.wanted()) {
    store(summaries.mean_abs, mean_abs);
    const auto flat = ((r.scale == 0) | (p.scale == 0)) & 1;
    store(summaries.degenerate, __builtin_convertvector(flat, typename BytesOf<T>::type));
  }
  const auto infinite = ((r.mean_square - r.mean_square) + (p.mean_square - p.mean_square)) != 0;
  if (any(infinite)) recompute<T>(rewards, logprobs, offsets, sizes, infinite, scores, summaries);
}

template <class T>
SHFCAS_INLINE Register<T> share_of(const Register<T>& sizes) {
  const Register<T> one = Register<T>{} + 1;
  return one / (sizes > one ? sizes : one);
}

// Replaces the centred rewards by the scores. Returns the sum of their magnitudes, or 0 if not wanted.
template <class T>
SHFCAS_INLINE Register<T> subtract_scaled(Register<T>* reward, const Register<T>* logprob, int n,
                                          const LaneScale<T>& r, const LaneScale<T>& p,
                                          bool with_magnitudes) {
  using V = Register<T>;
  for (int i = 0; i < n; ++i) reward[i] = reward[i] * r.scale - logprob[i] * p.scale;
  if (!with_magnitudes) return V{};
  return sum_of<V>(
      n, [&](int i) __attribute__((always_inline)) { return reward[i] < 0 ? -reward[i] : reward[i]; });
}

// Writes whole tiles of n columns to scores[offsets[l]], ..., row after row, since a tile may reach into the
// next row. Leaves the columns transposed.
template <class T>
SHFCAS_INLINE void store_rows(Register<T>* columns, int n, T* scores, const int64_t* offsets) {
  constexpr int tile = kTile<T>, lanes = kLanesOf<T>;
  for (int i = 0; i < n; i += tile) transpose<tile>(columns + i);
  for (int l = 0; l < lanes; ++l)
    for (int i = 0; i < n; i += tile) {
      T* out = scores + offsets[l] + i;
      if constexpr (tile == lanes)
        store(out, columns[i + l]);
      else
        store(out, half<T>(columns[i + l % tile], l / tile, std::make_index_sequence<tile>{}));
    }
}

// Scores a block of kBlockLanes consecutive rows of at most kMaxLaneRow elements. Reads and writes whole
// tiles: the elements after a row are overwritten. They must be padding, or belong to a row that is written
// later.
template <class T>
SHFCAS_INLINE void pacs_lanes(int longest, const T* rewards, const T* logprobs, const int64_t* offsets,
                              const int64_t* sizes, T* scores, const Summaries<T>& summaries) {
  using V = Register<T>;
  constexpr int tile = kTile<T>, lanes = kLanesOf<T>;
  for (int lane = 0; lane < kBlockLanes<T>; lane += lanes) {
    T lengths[lanes];
    for (int l = 0; l < lanes; ++l) lengths[l] = static_cast<T>(sizes[lane + l]);
    const V size = load<V>(lengths), share = share_of<T>(size);
    V reward[kMaxLaneRow], logprob[kMaxLaneRow];
    for (int i = 0; i < longest; i += tile) load_tile<T>(rewards + i, offsets + lane, reward + i);
    const LaneScale<T> r = centre<T, false>(reward, longest, size, share);
    for (int i = 0; i < longest; i += tile) load_tile<T>(logprobs + i, offsets + lane, logprob + i);
    const LaneScale<T> p = centre<T, false>(logprob, longest, size, share);
    const V magnitude = subtract_scaled<T>(reward, logprob, longest, r, p, summaries.wanted());
    store_rows<T>(reward, longest, scores, offsets + lane);
    summarize(rewards, logprobs, offsets + lane, sizes + lane, r, p, magnitude * share, scores,
              summaries.from(lane));
  }
}

// Places of the rows of a register of lanes, for rows of n elements each.
template <class T>
struct EqualRows {
  int64_t offsets[kLanesOf<T>], sizes[kLanesOf<T>];
  SHFCAS_INLINE explicit EqualRows(int n) {
    for (int l = 0; l < kLanesOf<T>; ++l) {
      offsets[l] = l * n;
      sizes[l] = n;
    }
  }
};

// Scores `count` registers of consecutive rows of n elements each; like pacs_lanes(), it reads and writes
// whole tiles.
template <class T>
SHFCAS_INLINE void pacs_equal_rows(int n, int64_t count, const T* rewards, const T* logprobs, T* scores,
                                   const Summaries<T>& summaries) {
  using V = Register<T>;
  constexpr int lanes = kLanesOf<T>;
  const EqualRows<T> rows(n);
  const V size = V{} + static_cast<T>(n), share = share_of<T>(size);
  for (int64_t k = 0; k < count; ++k) {
    V reward[kMaxLaneRow], logprob[kMaxLaneRow];
    for (int i = 0; i < n; i += kTile<T>) load_tile<T>(rewards + i, rows.offsets, reward + i);
    const LaneScale<T> r = centre<T, true>(reward, n, size, share);
    for (int i = 0; i < n; i += kTile<T>) load_tile<T>(logprobs + i, rows.offsets, logprob + i);
    const LaneScale<T> p = centre<T, true>(logprob, n, size, share);
    const V magnitude = subtract_scaled<T>(reward, logprob, n, r, p, summaries.wanted());
    store_rows<T>(reward, n, scores, rows.offsets);
    summarize(rewards, logprobs, rows.offsets, rows.sizes, r, p, magnitude * share, scores,
              summaries.from(k * lanes));
    rewards += lanes * n;
    logprobs += lanes * n;
    scores += lanes * n;
  }
}

// Returns a register whose lane l is the sum of the lanes of rows[l].
template <int Step, class V>
SHFCAS_INLINE V sum_each(V* rows) {
  constexpr auto lanes = std::make_index_sequence<sizeof(V) / sizeof(rows[0][0])>{};
  for (int i = 0; i < Step; ++i) {
    exchange_halves<Step>(rows[i], rows[i + Step], lanes);
    rows[i] += rows[i + Step];
  }
  if constexpr (Step > 1)
    return sum_each<Step / 2>(rows);
  else
    return rows[0];
}

// Scores kLanesOf<T> rows of at most kMaxStepRow elements in step. Reads and writes whole registers: the
// elements after a row are overwritten. They must be padding, or belong to a row that is written later.
template <class T>
inline void pacs_rows_in_step(const T* rewards, const T* logprobs, const int64_t* offsets,
                              const int64_t* sizes, T* scores, const Summaries<T>& summaries) {
  using V = Register<T>;
  using Mask = Register<Key<T>>;
  constexpr int lanes = kLanesOf<T>;
  static_assert(lanes <= 16);
  alignas(64) static constexpr Key<T> ones_then_zeros[32] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                             -1, -1, -1, -1, -1, -1, -1, -1};
  // Calls f(i, in_row) for every register of row l; in_row is all ones except in the last register.
  const auto for_registers = [&](int l, const auto& f) __attribute__((always_inline)) {
    const int64_t n = sizes[l], whole = n / lanes * lanes;
    const Mask all = ~Mask{};
    for (int64_t i = 0; i < whole; i += lanes) f(offsets[l] + i, all);
    if (whole < n) f(offsets[l] + whole, load<Mask>(ones_then_zeros + 16 - (n - whole)));
  };
  // Distance of the prefetch: the next rows are loaded while these are computed.
  const int64_t ahead = offsets[lanes - 1] + sizes[lanes - 1] - offsets[0];
  T lengths[lanes];
  for (int l = 0; l < lanes; ++l) lengths[l] = static_cast<T>(sizes[l]);
  const V share = V{} + 1 / load<V>(lengths);

  V reward_sums[lanes], logprob_sums[lanes];
  for (int l = 0; l < lanes; ++l) {
    const V reward_origin = V{} + rewards[offsets[l]], logprob_origin = V{} + logprobs[offsets[l]];
    V reward_sum = {}, logprob_sum = {};
    for_registers(l, [&](int64_t i, const Mask& in_row) __attribute__((always_inline)) {
      reward_sum += in_row ? load<V>(rewards + i) - reward_origin : V{};
      logprob_sum += in_row ? load<V>(logprobs + i) - logprob_origin : V{};
    });
    reward_sums[l] = reward_sum;
    logprob_sums[l] = logprob_sum;
  }
  T reward_means[lanes], logprob_means[lanes];
  store(reward_means, sum_each<lanes / 2>(reward_sums) * share);
  store(logprob_means, sum_each<lanes / 2>(logprob_sums) * share);

  for (int l = 0; l < lanes; ++l) {
    const V reward_origin = V{} + rewards[offsets[l]], logprob_origin = V{} + logprobs[offsets[l]],
            reward_mean = V{} + reward_means[l], logprob_mean = V{} + logprob_means[l];
    V reward_sum = {}, logprob_sum = {};
    for_registers(l, [&](int64_t i, const Mask& in_row) __attribute__((always_inline)) {
      const V reward = in_row ? load<V>(rewards + i) - reward_origin - reward_mean : V{},
              logprob = in_row ? load<V>(logprobs + i) - logprob_origin - logprob_mean : V{};
      reward_sum += reward * reward;
      logprob_sum += logprob * logprob;
      __builtin_prefetch(rewards + i + ahead);
      __builtin_prefetch(logprobs + i + ahead);
    });
    reward_sums[l] = reward_sum;
    logprob_sums[l] = logprob_sum;
  }
  const LaneScale<T> r = lane_scale<T>(sum_each<lanes / 2>(reward_sums) * share),
                     p = lane_scale<T>(sum_each<lanes / 2>(logprob_sums) * share);
  T reward_scales[lanes], logprob_scales[lanes];
  store(reward_scales, r.scale);
  store(logprob_scales, p.scale);

  const bool with_magnitudes = summaries.wanted();
  for (int l = 0; l < lanes; ++l) {
    const V reward_origin = V{} + rewards[offsets[l]], logprob_origin = V{} + logprobs[offsets[l]],
            reward_mean = V{} + reward_means[l], logprob_mean = V{} + logprob_means[l],
            reward_scale = V{} + reward_scales[l], logprob_scale = V{} + logprob_scales[l];
    V magnitude = {};
    for_registers(l, [&](int64_t i, const Mask& in_row) __attribute__((always_inline)) {
      const V score = (load<V>(rewards + i) - reward_origin - reward_mean) * reward_scale -
                      (load<V>(logprobs + i) - logprob_origin - logprob_mean) * logprob_scale;
      store(scores + i, score);
      __builtin_prefetch(scores + i + ahead, 1);
      if (with_magnitudes) magnitude += in_row ? (score < 0 ? -score : score) : V{};
    });
    reward_sums[l] = magnitude;
  }
  const V magnitudes = with_magnitudes ? sum_each<lanes / 2>(reward_sums) : V{};
  summarize(rewards, logprobs, offsets, sizes, r, p, magnitudes * share, scores, summaries);
}

// Rows scored together.
template <class T>
struct RowGroup {
  static constexpr int kMost = kBlockLanes<T>;
  int64_t rows[kMost], offsets[kMost], sizes[kMost];  // rows: indices of their summaries
  int count = 0;
  int64_t longest = 0;

  SHFCAS_INLINE void add(int64_t row, int64_t offset, int64_t size) {
    rows[count] = row;
    offsets[count] = offset;
    sizes[count++] = size;
    longest = size > longest ? size : longest;
  }
};

// Calls score(rewards, logprobs, offsets, sizes, scores, summaries) for `lanes` rows. score may read and
// write `ahead` elements beyond the end of each row. A full group of neighbours is scored in place if the
// elements after it are below the limit (they are written later); any other group is copied.
template <class T, class Score>
SHFCAS_INLINE void score_group(const T* rewards, const T* logprobs, RowGroup<T>& group, int lanes,
                               int64_t ahead, int64_t limit, T* scores, const Summaries<T>& summaries,
                               const Score& score) {
  const int count = group.count, last = count - 1;
  if (count == lanes && group.rows[last] - group.rows[0] == last &&
      group.offsets[last] + group.longest + ahead <= limit) {
    score(rewards, logprobs, group.offsets, group.sizes, scores, summaries.from(group.rows[0]));
  } else {
    T mean_abs[RowGroup<T>::kMost];
    bool degenerate[RowGroup<T>::kMost];
    const int64_t pitch = group.longest + ahead;
    const std::unique_ptr<T[]> copies(new T[3 * lanes * pitch]);
    T *reward = copies.get(), *logprob = reward + lanes * pitch, *result = logprob + lanes * pitch;
    int64_t places[RowGroup<T>::kMost], sizes[RowGroup<T>::kMost];
    for (int l = 0; l < lanes; ++l) {
      const int source = l < count ? l : 0;  // idle lanes repeat a row
      places[l] = l * pitch;
      sizes[l] = group.sizes[source];
      std::copy_n(rewards + group.offsets[source], sizes[l], reward + places[l]);
      std::copy_n(logprobs + group.offsets[source], sizes[l], logprob + places[l]);
    }
    score(reward, logprob, places, sizes, result,
          summaries.wanted() ? Summaries<T>{mean_abs, degenerate} : summaries);
    for (int l = 0; l < count; ++l) {
      std::copy_n(result + places[l], sizes[l], scores + group.offsets[l]);
      if (summaries.wanted()) summaries.set(group.rows[l], {static_cast<double>(mean_abs[l]), degenerate[l]});
    }
  }
  group.count = 0;
  group.longest = 0;
}

// Scores as many of the rows [begin, end) of n <= kMaxLaneRow elements each as fill registers and can be read
// and written in place; returns their number.
template <class T>
SHFCAS_INLINE int64_t pacs_in_place(const T* rewards, const T* logprobs, int64_t n, int64_t begin,
                                    int64_t end, T* scores, const Summaries<T>& summaries) {
  const int64_t spill = (n + kTile<T> - 1) / kTile<T> * kTile<T> - n;  // elements written after a row
  const int64_t usable = end - begin - (spill + n - 1) / n, registers = usable / kLanesOf<T>;
  if (registers <= 0) return 0;
  const auto score = [&](int size) __attribute__((always_inline)) {
    pacs_equal_rows<T>(size, registers, rewards + begin * n, logprobs + begin * n, scores + begin * n,
                       summaries);
  };
  if (n == 4)  // common lengths unroll
    score(4);
  else if (n == 8)
    score(8);
  else if (n == 16)
    score(16);
  else
    score(static_cast<int>(n));
  return registers * kLanesOf<T>;
}

// Writes the scores of rows [begin, end), and their summaries to mean_abs[0], degenerate[0], ... if they are
// not null. The length of a row alone decides how it is computed, so its scores do not depend on other rows.
template <class T>
void pacs_rows(const T* rewards, const T* logprobs, const Rows& rows, int64_t begin, int64_t end, T* scores,
               T* mean_abs, bool* degenerate) {
  const Summaries<T> summaries{mean_abs, degenerate};
  const int64_t limit = rows.begin(end - 1) + rows.size(end - 1);
  int64_t row = begin;
  if (!rows.offsets && rows.length > 0 && rows.length <= kMaxLaneRow)
    row += pacs_in_place(rewards, logprobs, rows.length, begin, end, scores, summaries);
  RowGroup<T> lanes, steps;
  const auto score_lanes = [&] {
    const int longest = static_cast<int>(lanes.longest);
    score_group(rewards, logprobs, lanes, kBlockLanes<T>, kTile<T>, limit, scores, summaries,
                [longest](auto&&... arguments)
                    __attribute__((always_inline)) { pacs_lanes<T>(longest, arguments...); });
  };
  const auto score_steps = [&] {
    score_group(rewards, logprobs, steps, kLanesOf<T>, kLanesOf<T>, limit, scores, summaries,
                [](auto&&... arguments)
                    __attribute__((always_inline)) { pacs_rows_in_step<T>(arguments...); });
  };
  for (; row < end; ++row) {
    const int64_t n = rows.size(row), first = rows.begin(row);
    if (n == 0) {
      summaries.set(row - begin, {0, true});
    } else if (n <= kMaxLaneRow) {
      lanes.add(row - begin, first, n);
      if (lanes.count == kBlockLanes<T>) score_lanes();
    } else if (n <= kMaxStepRow) {
      steps.add(row - begin, first, n);
      if (steps.count == kLanesOf<T>) score_steps();
    } else {
      summaries.set(row - begin, pacs_long_row(rewards + first, logprobs + first, n, scores + first));
    }
  }
  if (lanes.count > 0) score_lanes();
  if (steps.count > 0) score_steps();
}

}  // namespace shfcas::SHFCAS_LEVEL
