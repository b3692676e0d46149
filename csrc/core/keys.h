// Ordered keys: every number becomes a signed integer of the same width and the same sort order. Pairs are
// then compared with integer instructions. -0.0 and +0.0 share a key; the infinities are the ends of the
// order. NaN has no key: check is_nan first.
//
// The functions work on the bits of a number, in one integer or in a vector register of integers.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"

namespace shfcas {

template <class T>
struct KeyOf {  // integers are their own keys
  using type = T;
  static constexpr bool floating = false;
};

template <>
struct KeyOf<float> {
  using type = int32_t;
  static constexpr bool floating = true;
  static constexpr int32_t sign_shift = 31, magnitude = INT32_MAX, infinity = 0x7f800000;
};

template <>
struct KeyOf<double> {
  using type = int64_t;
  static constexpr bool floating = true;
  static constexpr int64_t sign_shift = 63, magnitude = INT64_MAX, infinity = 0x7ff0000000000000;
};

template <class T>
using Key = typename KeyOf<T>::type;

template <class T>
SHFCAS_INLINE Key<T> bits_of(T value) {
  Key<T> bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// Converts sign and magnitude to two's complement. Magnitudes of floating-point numbers sort as integers.
template <class T, class Bits>
SHFCAS_INLINE void bits_to_key(Bits& bits) {
  if constexpr (KeyOf<T>::floating) {
    const Bits sign = bits >> KeyOf<T>::sign_shift;  // 0 or -1
    bits = ((bits & KeyOf<T>::magnitude) ^ sign) - sign;
  }
}

template <class T>
SHFCAS_INLINE Key<T> ordered_key(T value) {
  Key<T> key = bits_of(value);
  bits_to_key<T>(key);
  return key;
}

template <class T>
SHFCAS_INLINE bool is_nan(T value) {
  return value != value;
}

}  // namespace shfcas
