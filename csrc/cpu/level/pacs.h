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

// Applies f to each lane.
template <class V, class F>
SHFCAS_INLINE V map_lanes(const V& v, const F& f) {
  constexpr int lanes = sizeof(V) / sizeof(v[0]);
  std::remove_cv_t<std::remove_reference_t<decltype(v[0])>> values[lanes];
  memcpy(values, &v, sizeof(V));
  for (int l = 0; l < lanes; ++l) values[l] = f(values[l]);
  return load<V>(values);
}

template <class T>
struct LaneScale {
  Register<T> mean_square, scale;
};

template <class T>
SHFCAS_INLINE LaneScale<T> lane_scale(const Register<T>& mean_square) {
  using V = Register<T>;
  const V std =
      map_lanes(mean_square, [](T square) __attribute__((always_inline)) { return std::sqrt(square); });
  return {mean_square, std < static_cast<T>(kMinStd) ? V{} : (V{} + 1) / std};
}

// Replaces v[0, n) by the deviations from the mean; elements beyond the size of a row become 0. `share` is
// 1 / size.
template <class T, bool Equal>
SHFCAS_INLINE LaneScale<T> centre(Register<T>* v, int n, const Register<T>& sizes, const Register<T>& share) {
  using V = Register<T>;
  const V origin = v[0];
  V sum = {}, squares = {};
  for (int i = 0; i < n; ++i) {
    v[i] -= origin;
    if (!Equal) v[i] = static_cast<T>(i) < sizes ? v[i] : V{};
    sum += v[i];
  }
  const V mean = sum * share;
  for (int i = 0; i < n; ++i) {
    v[i] -= mean;
    if (!Equal) v[i] = static_cast<T>(i) < sizes ? v[i] : V{};
    squares += v[i] * v[i];
  }
  LaneScale<T> result = lane_scale<T>(squares * share);
  result.scale = sizes < 2 ? V{} : result.scale;
  return result;
}

// Writes the summaries of a register of rows, and recomputes rows whose squares overflow in double.
template <class T>
SHFCAS_INLINE void summarize(const T* rewards, const T* logprobs, const int64_t* offsets,
                             const int64_t* sizes, const LaneScale<T>& r, const LaneScale<T>& p,
                             const Register<T>& mean_abs, T* scores, PacsSummary* summaries) {
  constexpr int lanes = kLanesOf<T>;
  T means[lanes], infinite[lanes], outliers = 0;
  Key<T> flat[lanes];
  store(means, mean_abs);
  store(flat, (r.scale == 0) | (p.scale == 0));
  store(infinite, (r.mean_square - r.mean_square) + (p.mean_square - p.mean_square));
  for (int l = 0; l < lanes; ++l) {
    summaries[l] = {static_cast<double>(means[l]), flat[l] != 0};
    outliers += infinite[l];
  }
  if (outliers == 0) return;
  for (int l = 0; l < lanes; ++l)
    if (infinite[l] != 0)
      summaries[l] = write_pacs(SerialTeam{}, rewards + offsets[l], logprobs + offsets[l], sizes[l],
                                scores + offsets[l]);
}

// Scores a block of kBlockLanes consecutive rows of at most kMaxLaneRow elements. Reads and writes whole
// tiles: the elements after a row are overwritten. They must be padding, or belong to a row that is written
// later.
template <class T, bool Equal>
SHFCAS_INLINE void pacs_lanes(int longest, const T* rewards, const T* logprobs, const int64_t* offsets,
                              const int64_t* sizes, T* scores, PacsSummary* summaries) {
  using V = Register<T>;
  constexpr int tile = kTile<T>, lanes = kLanesOf<T>;
  for (int lane = 0; lane < kBlockLanes<T>; lane += lanes) {
    V size = V{} + static_cast<T>(longest);
    if (!Equal) {
      T lengths[lanes];
      for (int l = 0; l < lanes; ++l) lengths[l] = static_cast<T>(sizes[lane + l]);
      size = load<V>(lengths);
    }
    const V one = V{} + 1, share = one / (size > one ? size : one);
    V reward[kMaxLaneRow], logprob[kMaxLaneRow];
    for (int i = 0; i < longest; i += tile) load_tile<T>(rewards + i, offsets + lane, reward + i);
    const LaneScale<T> r = centre<T, Equal>(reward, longest, size, share);
    for (int i = 0; i < longest; i += tile) load_tile<T>(logprobs + i, offsets + lane, logprob + i);
    const LaneScale<T> p = centre<T, Equal>(logprob, longest, size, share);
    V magnitude = {};
    for (int i = 0; i < longest; ++i) {
      reward[i] = reward[i] * r.scale - logprob[i] * p.scale;
      magnitude += reward[i] < 0 ? -reward[i] : reward[i];
    }
    for (int i = 0; i < longest; i += tile) transpose<tile>(reward + i);
    for (int l = 0; l < lanes; ++l)
      for (int i = 0; i < longest; i += tile) {
        T* out = scores + offsets[lane + l] + i;
        if constexpr (tile == lanes)
          store(out, reward[i + l]);
        else
          store(out, half<T>(reward[i + l % tile], l / tile, std::make_index_sequence<tile>{}));
      }

    summarize(rewards, logprobs, offsets + lane, sizes + lane, r, p, magnitude * share, scores,
              summaries + lane);
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
                              const int64_t* sizes, T* scores, PacsSummary* summaries) {
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
      magnitude += in_row ? (score < 0 ? -score : score) : V{};
    });
    reward_sums[l] = magnitude;
  }
  summarize(rewards, logprobs, offsets, sizes, r, p, sum_each<lanes / 2>(reward_sums) * share, scores,
            summaries);
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
                               int64_t ahead, int64_t limit, T* scores, PacsSummary* summaries,
                               const Score& score) {
  const int count = group.count, last = count - 1;
  if (count == lanes && group.rows[last] - group.rows[0] == last &&
      group.offsets[last] + group.longest + ahead <= limit) {
    score(rewards, logprobs, group.offsets, group.sizes, scores, summaries + group.rows[0]);
  } else {
    PacsSummary results[RowGroup<T>::kMost];
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
    score(reward, logprob, places, sizes, result, results);
    for (int l = 0; l < count; ++l) {
      std::copy_n(result + places[l], sizes[l], scores + group.offsets[l]);
      summaries[group.rows[l]] = results[l];
    }
  }
  group.count = 0;
  group.longest = 0;
}

// Writes the scores of rows [begin, end), and their summaries to summaries[0], ... The length of a row alone
// decides how it is computed, so its scores do not depend on other rows.
template <class T>
void pacs_rows(const T* rewards, const T* logprobs, const Rows& rows, int64_t begin, int64_t end, T* scores,
               PacsSummary* summaries) {
  const int64_t limit = rows.begin(end - 1) + rows.size(end - 1);
  RowGroup<T> lanes, steps;
  const auto score_lanes = [&] {
    const int longest = static_cast<int>(lanes.longest);
    const auto run = [&](auto equal, int n) __attribute__((always_inline)) {
      score_group(rewards, logprobs, lanes, kBlockLanes<T>, kTile<T>, limit, scores, summaries,
                  [n](auto&&... arguments) __attribute__((always_inline)) {
                    pacs_lanes<T, decltype(equal)::value>(n, arguments...);
                  });
    };
    if (rows.offsets)
      run(std::false_type{}, longest);
    else if (longest == 4)  // common lengths unroll
      run(std::true_type{}, 4);
    else if (longest == 8)
      run(std::true_type{}, 8);
    else if (longest == 16)
      run(std::true_type{}, 16);
    else
      run(std::true_type{}, longest);
  };
  const auto score_steps = [&] {
    score_group(rewards, logprobs, steps, kLanesOf<T>, kLanesOf<T>, limit, scores, summaries,
                [](auto&&... arguments)
                    __attribute__((always_inline)) { pacs_rows_in_step<T>(arguments...); });
  };
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = rows.size(row), first = rows.begin(row);
    if (n == 0) {
      summaries[row - begin] = {0, true};
    } else if (n <= kMaxLaneRow) {
      lanes.add(row - begin, first, n);
      if (!rows.offsets)  // the next rows are as long
        for (; lanes.count < kBlockLanes<T> && row + 1 < end; ++row)
          lanes.add(row + 1 - begin, (row + 1) * n, n);
      if (lanes.count == kBlockLanes<T>) score_lanes();
    } else if (n <= kMaxStepRow) {
      steps.add(row - begin, first, n);
      if (steps.count == kLanesOf<T>) score_steps();
    } else {
      summaries[row - begin] = pacs_long_row(rewards + first, logprobs + first, n, scores + first);
    }
  }
  if (lanes.count > 0) score_lanes();
  if (steps.count > 0) score_steps();
}

}  // namespace shfcas::SHFCAS_LEVEL
