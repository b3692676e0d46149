// Proxy-policy conflict score (PACS) of a row: PACS_i = z(reward)_i - z(logprob)_i. z is the z-score within
// the row, with the population standard deviation.
//
// Sums are double for every input dtype: a float sum has too few digits for log-probabilities near -300 that
// differ by 1. CUDA always uses this code. The CPU uses it where single precision is not enough
// (cpu/level/pacs.h).
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"

namespace shfcas {

// A row is degenerate below this standard deviation, or with fewer than two elements: its z-scores are 0.
constexpr double kMinStd = 1e-6;

struct ZScore {
  double mean;
  double scale;  // 1 / std, or 0 if degenerate
  bool degenerate;

  // A NaN or infinity in the row gives NaN, also in a degenerate row, since 0 * NaN is NaN.
  SHFCAS_INLINE double operator()(double value) const { return (value - mean) * scale; }
};

template <class Team, class T>
SHFCAS_INLINE ZScore z_score(const Team& team, const T* values, int64_t n) {
  double sum = 0;
  SHFCAS_SIMD_SUM(sum)
  for (int64_t i = team.rank(); i < n; i += team.size()) sum += static_cast<double>(values[i]);
  const double mean = team.sum(sum) / static_cast<double>(n);

  double squares = 0;
  SHFCAS_SIMD_SUM(squares)
  for (int64_t i = team.rank(); i < n; i += team.size()) {
    const double deviation = static_cast<double>(values[i]) - mean;
    squares += deviation * deviation;
  }
  const double std = sqrt(team.sum(squares) / static_cast<double>(n));
  const bool degenerate = n < 2 || std < kMinStd;
  return {mean, degenerate ? 0 : 1 / std, degenerate};
}

struct PacsSummary {
  double mean_abs;  // 0 for an empty row
  bool degenerate;  // rewards or logprobs are degenerate
};

// Writes the n scores of a row and returns their summary.
template <class Team, class T>
SHFCAS_INLINE PacsSummary write_pacs(const Team& team, const T* rewards, const T* logprobs, int64_t n,
                                     T* scores) {
  const ZScore reward = z_score(team, rewards, n), logprob = z_score(team, logprobs, n);
  double magnitude = 0;
  SHFCAS_SIMD_SUM(magnitude)
  for (int64_t i = team.rank(); i < n; i += team.size()) {
    const double score = reward(static_cast<double>(rewards[i])) - logprob(static_cast<double>(logprobs[i]));
    scores[i] = static_cast<T>(score);
    magnitude += fabs(score);
  }
  const double mean_abs = n > 0 ? team.sum(magnitude) / static_cast<double>(n) : 0;
  return {mean_abs, reward.degenerate || logprob.degenerate};
}

// Writes sign times the gradient of sum_i gradient_i z_i with respect to the values of a row:
//   sign / std * (gradient_i - mean(gradient) - z_i mean(gradient z)), and 0 for a degenerate row.
template <class Team, class T>
SHFCAS_INLINE void write_z_gradient(const Team& team, const T* gradient, const T* values, int64_t n,
                                    double sign, T* out) {
  const ZScore z = z_score(team, values, n);
  double sum = 0, weighted = 0;
  SHFCAS_SIMD_SUM(sum, weighted)
  for (int64_t i = team.rank(); i < n; i += team.size()) {
    sum += static_cast<double>(gradient[i]);
    weighted += static_cast<double>(gradient[i]) * z(static_cast<double>(values[i]));
  }
  const double mean = team.sum(sum) / static_cast<double>(n);
  const double slope = team.sum(weighted) / static_cast<double>(n);
  for (int64_t i = team.rank(); i < n; i += team.size()) {
    const double centred =
        static_cast<double>(gradient[i]) - mean - z(static_cast<double>(values[i])) * slope;
    out[i] = static_cast<T>(sign * z.scale * centred);
  }
}

}  // namespace shfcas
