// exp for the sums of a softmax: nonpositive arguments only, and loops over it vectorise.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/macros.h"

namespace shfcas {

// Returns exp(x) for x <= 0, within 2 units in the last place. Returns 0 below -87, near the denormal range,
// and NaN for NaN.
//
// exp(x) = 2^k exp(r) with k = round(x / ln 2), so abs(r) <= ln(2) / 2. In that range, the error of the
// Taylor polynomial of degree 7 is below the rounding error.
SHFCAS_INLINE float exp_nonpositive(float x) {
  constexpr float shift = 12582912;  // 1.5 * 2^23: a float this large has no fractional digits
  constexpr float ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;  // k * ln2_high is exact
  const float shifted = x * 1.44269504f + shift;
  const float k = shifted - shift;
  const float r = (x - k * ln2_high) - k * ln2_low;
  float p = 1.98412698e-4f;
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 0.166666667f;
  p = p * r + 0.5f;
  p = p * r + 1;
  p = p * r + 1;
  // The low bits of shifted are k. Adding them to the exponent of p multiplies p by 2^k.
  uint32_t bits, exponent;
  memcpy(&bits, &p, sizeof(bits));
  memcpy(&exponent, &shifted, sizeof(exponent));
  bits += exponent << 23;
  float result;
  memcpy(&result, &bits, sizeof(result));
  result = x < -87 ? 0 : result;
  return x != x ? x : result;
}

SHFCAS_INLINE double exp_nonpositive(double x) { return exp(x); }

}  // namespace shfcas
