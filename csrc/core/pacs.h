// The proxy-policy conflict score of a row: PACS_i = z(reward)_i - z(logprob)_i, where z is the z-score of
// the row with the population standard deviation.
//
// Sums are held in double whatever the input: log-probabilities of -300 that differ by 1 leave a float sum
// too few digits. CUDA computes so, and the CPU where single precision does not do (cpu/level/pacs.h).
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"

namespace shfcas {

// Below this standard deviation, or with fewer than two elements, a row says nothing: its z-scores are 0.
constexpr double kMinStd = 1e-6;

struct ZScore {
  double mean;
  double scale;  // 1 / std, or 0 if degenerate
  bool degenerate;

  // A NaN or infinity in the row makes this NaN, degenerate or not, since 0 * NaN is NaN.
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
  bool degenerate;  // by rewards or by logprobs
};

// Writes the n scores of a row.
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

// The gradient of sum_i gradient_i z_i with respect to the values of a row, times sign:
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
