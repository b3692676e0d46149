// Inversions of a permutation: pairs i < j with p[i] > p[j].
#pragma once

#include "cpu/level/registers.h"

namespace shfcas::SHFCAS_LEVEL {

// Row p of `below` has a 1 at each place below p; row p of `at` has all bits set at place p.
struct PlaceTables {
  alignas(64) uint32_t below[16][16] = {};
  alignas(64) uint32_t at[16][16] = {};
  constexpr PlaceTables() {
    for (int p = 0; p < 16; ++p) {
      for (int i = 0; i < p; ++i) below[p][i] = 1;
      at[p][p] = ~uint32_t{0};
    }
  }
};
constexpr PlaceTables kPlaces;

// Sixteen counters of 32 bits in registers.
struct Sixteen {
  using V = Register<uint32_t>;
  static constexpr int kParts = 64 / kBytes;
  V parts[kParts] = {};

  SHFCAS_INLINE static Sixteen from(const uint32_t* values) {
    Sixteen result;
    for (int i = 0; i < kParts; ++i) result.parts[i] = load<V>(values + i * kLanesOf<uint32_t>);
    return result;
  }
  SHFCAS_INLINE void write(uint32_t* values) const {
    for (int i = 0; i < kParts; ++i) store(values + i * kLanesOf<uint32_t>, parts[i]);
  }
  SHFCAS_INLINE void add(const Sixteen& other) {
    for (int i = 0; i < kParts; ++i) parts[i] += other.parts[i];
  }
  SHFCAS_INLINE void add_at(int place, const Sixteen& other) {
    for (int i = 0; i < kParts; ++i)
      parts[i] += other.parts[i] & load<V>(kPlaces.at[place] + i * kLanesOf<uint32_t>);
  }
  SHFCAS_INLINE int64_t sum() const {
    uint32_t values[16];
    write(values);
    int64_t total = 0;
    for (uint32_t value : values) total += value;
    return total;
  }
};

// Counts, for numbers that are inserted one after another, those inserted before in higher places: 16 places.
// Nothing depends on a counter that was just stored, so insertions overlap. take() returns the sum since the
// last call, which must not reach 2^32.
class HigherPlaces {
 public:
  SHFCAS_INLINE void insert(int place) {
    found_.add_at(place, counts_);
    counts_.add(Sixteen::from(kPlaces.below[place]));
  }
  SHFCAS_INLINE int64_t take() {
    const int64_t sum = found_.sum();
    found_ = {};
    return sum;
  }

 private:
  Sixteen counts_, found_;
};

// The same for 256 buckets: 16 groups of 16.
class HigherBuckets {
 public:
  SHFCAS_INLINE void insert(int bucket) {
    const int group = bucket >> 4, place = bucket & 15;
    groups_.insert(group);
    Sixteen counts = Sixteen::from(within_[group]);
    found_.add_at(place, counts);
    counts.add(Sixteen::from(kPlaces.below[place]));
    counts.write(within_[group]);
  }
  SHFCAS_INLINE int64_t take() {
    const int64_t sum = groups_.take() + found_.sum();
    found_ = {};
    return sum;
  }

 private:
  HigherPlaces groups_;
  Sixteen found_;
  alignas(64) uint32_t within_[16][16] = {};
};

// Counts inversions with buckets that are 64-bit words, one bit per number.
template <class Buckets, int kWords>
inline int64_t inversions_direct(const uint32_t* p, int64_t n, uint32_t origin) {
  static_assert(kWords * 64 <= 1 << 15);  // squares fit 32 bits
  Buckets higher;
  uint64_t words[kWords] = {};
  int64_t inversions = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t number = p[i] - origin, bucket = number >> 6, bit = number & 63;
    const uint64_t word = words[bucket];
    inversions += __builtin_popcountll(word >> bit);
    words[bucket] = word | uint64_t{1} << bit;
    higher.insert(static_cast<int>(bucket));
  }
  return inversions + higher.take();
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
  const int64_t steps = (int64_t{1} << 32) / n;  // insertions that 32 bits can sum
  for (int64_t begin = 0; begin < n; begin += steps) {
    const int64_t end = begin + steps < n ? begin + steps : n;
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t bucket = (p[i] - origin) >> shift;
      higher.insert(static_cast<int>(bucket));
      buffer[next[bucket]++] = p[i];
    }
    inversions += higher.take();
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
