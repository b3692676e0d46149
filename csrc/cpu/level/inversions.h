// Inversions of a permutation: pairs i < j with p[i] > p[j].
#pragma once

#include "cpu/level/registers.h"

namespace shfcas::SHFCAS_LEVEL {

typedef uint32_t Sixteen __attribute__((vector_size(64), may_alias));

// Row p has a 1 at each place below p.
struct PlacesBelow {
  alignas(64) uint32_t rows[16][16] = {};
  constexpr PlacesBelow() {
    for (int p = 0; p < 16; ++p)
      for (int i = 0; i < p; ++i) rows[p][i] = 1;
  }
};
constexpr PlacesBelow kPlacesBelow;

// Counter of the numbers inserted so far in higher places, for 16 places.
class HigherPlaces {
 public:
  SHFCAS_INLINE int64_t count(int place) const { return counts_[place]; }
  SHFCAS_INLINE void insert(int place) {
    *reinterpret_cast<Sixteen*>(counts_) += *reinterpret_cast<const Sixteen*>(kPlacesBelow.rows[place]);
  }

 private:
  alignas(64) uint32_t counts_[16] = {};
};

// The same for 256 buckets: 16 groups of 16.
class HigherBuckets {
 public:
  SHFCAS_INLINE int64_t count(int bucket) const {
    return groups_.count(bucket >> 4) + within_[bucket >> 4].count(bucket & 15);
  }
  SHFCAS_INLINE void insert(int bucket) {
    groups_.insert(bucket >> 4);
    within_[bucket >> 4].insert(bucket & 15);
  }

 private:
  HigherPlaces groups_, within_[16];
};

// Counts inversions with buckets that are 64-bit words, one bit per number.
template <class Buckets, int kWords>
inline int64_t inversions_direct(const uint32_t* p, int64_t n, uint32_t origin) {
  Buckets higher;
  uint64_t words[kWords] = {};
  int64_t inversions = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t number = p[i] - origin, bucket = number >> 6, bit = number & 63;
    inversions += higher.count(static_cast<int>(bucket)) + __builtin_popcountll(words[bucket] >> bit);
    words[bucket] |= uint64_t{1} << bit;
    higher.insert(static_cast<int>(bucket));
  }
  return inversions;
}

constexpr int kDirectBits = 14;  // bits of the numbers that 256 words hold

// Counts the inversions of p: n distinct numbers in [origin, origin + 2^bits). Reorders p; buffer holds n.
inline int64_t inversions_of(uint32_t* p, uint32_t* buffer, int64_t n, uint32_t origin, int bits) {
  if (n < 2) return 0;
  if (bits <= 10) return inversions_direct<HigherPlaces, 16>(p, n, origin);
  if (bits <= kDirectBits) return inversions_direct<HigherBuckets, 256>(p, n, origin);

  // Count inversions across buckets, move every number to its bucket in order, and count within buckets.
  const int shift = bits - 8 > kDirectBits ? bits - 8 : kDirectBits;
  int64_t next[257] = {};
  for (int64_t i = 0; i < n; ++i) ++next[((p[i] - origin) >> shift) + 1];
  for (int b = 0; b < 256; ++b) next[b + 1] += next[b];
  HigherBuckets higher;
  int64_t inversions = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bucket = (p[i] - origin) >> shift;
    inversions += higher.count(static_cast<int>(bucket));
    higher.insert(static_cast<int>(bucket));
    buffer[next[bucket]++] = p[i];
  }
  for (int64_t b = 0, begin = 0; begin < n; begin = next[b++])
    inversions += inversions_of(buffer + begin, p + begin, next[b] - begin,
                                origin + (static_cast<uint32_t>(b) << shift), shift);
  return inversions;
}

inline int64_t count_inversions(uint32_t* p, uint32_t* buffer, int64_t n) {
  int bits = 0;
  while ((int64_t{1} << bits) < n) ++bits;
  return inversions_of(p, buffer, n, 0, bits);
}

}  // namespace shfcas::SHFCAS_LEVEL
