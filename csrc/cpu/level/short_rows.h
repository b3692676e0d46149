// Pair counts of a block of short rows of equal length, one row per lane.
//
// A sorting network sorts the rows by (x, y). Then x never descends, and a pair is discordant exactly if y
// descends: one comparison per pair, with or without ties. Runs of equal elements give the ties.
#pragma once

#include "cpu/kernels.h"
#include "cpu/level/sorting.h"

namespace shfcas::SHFCAS_LEVEL {

// x and y of one element per lane, ordered by x, then by y. 64-bit keys need one register each.
template <class K>
struct Element {
  Register<K> x, y;
};

template <class K>
SHFCAS_INLINE void exchange(Element<K>& a, Element<K>& b) {
  using V = Register<K>;
  const V swap = (a.x > b.x) | ((a.x == b.x) & (a.y > b.y));
  const V x = swap ? b.x : a.x, y = swap ? b.y : a.y;
  b.x ^= a.x ^ x;
  b.y ^= a.y ^ y;
  a = {x, y};
}

// Elements to sort: set(i, x, y) for each element, sort(), then get(i, x, y).
template <class K, int Capacity>
struct SortedPairs {
  Element<K> elements[Capacity];

  SHFCAS_INLINE void set(int i, const Register<K>& x, const Register<K>& y) { elements[i] = {x, y}; }
  SHFCAS_INLINE void sort(int n) { sort_up_to<Capacity>(elements, n); }
  SHFCAS_INLINE void get(int i, Register<K>& x, Register<K>& y) const {
    x = elements[i].x;
    y = elements[i].y;
  }
};

// Two 32-bit keys form one 64-bit key: even lanes in one register, odd lanes in another.
template <int Capacity>
struct SortedPairs<int32_t, Capacity> {
  using V = Register<int32_t>;
  using W = Register<int64_t>;
  using U = Register<uint64_t>;
  static constexpr int64_t kHigh = static_cast<int64_t>(0xffffffff00000000);

  Single<int64_t> even[Capacity], odd[Capacity];

  SHFCAS_INLINE void set(int i, const V& x, const V& y) {
    const W high = (W)x, low = (W)(y ^ INT32_MIN);  // the low half compares as unsigned
    even[i].key = (high << 32) | (low & ~kHigh);
    odd[i].key = (high & kHigh) | (W)((U)low >> 32);
  }
  SHFCAS_INLINE void sort(int n) {
    sort_up_to<Capacity>(even, n);
    sort_up_to<Capacity>(odd, n);
  }
  SHFCAS_INLINE void get(int i, V& x, V& y) const {
    const W e = even[i].key, o = odd[i].key;
    x = (V)((W)((U)e >> 32) | (o & kHigh));
    y = (V)((e & ~kHigh) | (o << 32)) ^ INT32_MIN;
  }
};

// The largest value of a lane.
template <class V>
constexpr auto kLargest =
    std::numeric_limits<std::remove_cv_t<std::remove_reference_t<decltype(V{}[0])>>>::max();

// Counts pairs i < j < n with y[i] > y[j]. y must hold n rounded up to a multiple of 4; the pads are written
// here.
template <class V>
SHFCAS_INLINE V count_descents(V* y, int n) {
  const V one = V{} + 1;
  V counts[4] = {};
  for (int i = n; i & 3; ++i) y[i] = V{} + kLargest<V>;  // a pad is never greater
  for (int i = 0; i < n; i += 4) {
    const V a = y[i], b = y[i + 1], c = y[i + 2], d = y[i + 3];
    counts[0] = a > b ? counts[0] + one : counts[0];
    counts[1] = a > c ? counts[1] + one : counts[1];
    counts[2] = a > d ? counts[2] + one : counts[2];
    counts[3] = b > c ? counts[3] + one : counts[3];
    counts[0] = b > d ? counts[0] + one : counts[0];
    counts[1] = c > d ? counts[1] + one : counts[1];
    for (int j = i + 4; j < n; ++j) {
      counts[0] = a > y[j] ? counts[0] + one : counts[0];
      counts[1] = b > y[j] ? counts[1] + one : counts[1];
      counts[2] = c > y[j] ? counts[2] + one : counts[2];
      counts[3] = d > y[j] ? counts[3] + one : counts[3];
    }
  }
  return (counts[0] + counts[1]) + (counts[2] + counts[3]);
}

// Adds the pairs within runs of equal elements. run is the length of the run that ends here, minus one.
template <class V>
SHFCAS_INLINE void count_ties(const V& same_as_previous, V& run, V& pairs) {
  run = (run + 1) & same_as_previous;
  pairs += run;
}

// Counts rows of n <= Size elements, for one register of lanes from `lane` on. Unrolled if
// Size <= kSortBlock.
template <class T, int Size>
SHFCAS_INLINE void count_part(const T* x, const T* y, const int64_t* offsets, int n, int lane,
                              BlockCounts<Key<T>>& counts) {
  using K = Key<T>;
  using V = Register<K>;
  constexpr bool unrolled = Size <= kSortBlock;
  constexpr int tile = kTile<K>, capacity = (Size + tile - 1) / tile * tile;
  const int limit = unrolled ? Size : n;
  const auto *x_bits = reinterpret_cast<const K*>(x), *y_bits = reinterpret_cast<const K*>(y);
  V xs[capacity], ys[capacity];
  for (int i = 0; i < limit; i += tile) {
    load_tile<K>(x_bits + i, offsets + lane, xs + i);
    load_tile<K>(y_bits + i, offsets + lane, ys + i);
  }

  const V largest = V{} + kLargest<V>;
  V invalid = {};
  SortedPairs<K, Size> pairs;
  Single<K> sorted_y[Size];
  for (int i = 0; i < limit; ++i) {
    if constexpr (KeyOf<T>::floating) {
      invalid |= i < n ? ((xs[i] & KeyOf<T>::magnitude) > KeyOf<T>::infinity) |
                             ((ys[i] & KeyOf<T>::magnitude) > KeyOf<T>::infinity)
                       : V{};
      bits_to_key<T>(xs[i]);
      bits_to_key<T>(ys[i]);
    }
    const bool pad = i >= n;
    const V x_key = pad ? largest : xs[i], y_key = pad ? largest : ys[i];
    pairs.set(i, x_key, y_key);
    sorted_y[i].key = y_key;
  }
  if constexpr (!unrolled)
    for (int i = n, padded = power_of_two(n); i < padded; ++i) {
      pairs.set(i, largest, largest);
      sorted_y[i].key = largest;
    }
  pairs.sort(n);
  sort_up_to<Size>(sorted_y, n);

  V tied_x = {}, tied_y = {}, tied_both = {}, run_x = {}, run_y = {}, run_both = {};
  V previous, current;
  pairs.get(0, previous, ys[0]);
  for (int i = 1; i < limit; ++i) {
    pairs.get(i, current, ys[i]);
    if (i < n) {
      const V same_x = current == previous;
      count_ties(same_x, run_x, tied_x);
      count_ties(same_x & (ys[i] == ys[i - 1]), run_both, tied_both);
      count_ties(sorted_y[i].key == sorted_y[i - 1].key, run_y, tied_y);
    }
    previous = current;
  }
  const V discordant = count_descents(ys, limit);
  memcpy(counts.discordant + lane, &discordant, kBytes);
  memcpy(counts.tied_x + lane, &tied_x, kBytes);
  memcpy(counts.tied_y + lane, &tied_y, kBytes);
  memcpy(counts.tied_both + lane, &tied_both, kBytes);
  memcpy(counts.invalid + lane, &invalid, kBytes);
}

template <class T, int Size>
void count_sized(const T* x, const T* y, const int64_t* offsets, int n, BlockCounts<Key<T>>& counts) {
  for (int lane = 0; lane < kBlockLanes<Key<T>>; lane += kLanesOf<Key<T>>)
    if (Size <= kSortBlock && n == Size)  // no pads; n is a constant
      count_part<T, Size>(x, y, offsets, Size, lane, counts);
    else
      count_part<T, Size>(x, y, offsets, n, lane, counts);
}

template <class T>
void count_block(const T* x, const T* y, const int64_t* offsets, int n, BlockCounts<Key<T>>& counts) {
  constexpr int capacity = sizeof(T) == 4 ? 256 : 128;
  static_assert(kMaxBlockLength<Key<T>> <= capacity);
  if (n <= 4)
    count_sized<T, 4>(x, y, offsets, n, counts);
  else if (n <= 8)
    count_sized<T, 8>(x, y, offsets, n, counts);
  else if (n <= 12)
    count_sized<T, 12>(x, y, offsets, n, counts);
  else if (n <= 16)
    count_sized<T, 16>(x, y, offsets, n, counts);
  else
    count_sized<T, capacity>(x, y, offsets, n, counts);
}

}  // namespace shfcas::SHFCAS_LEVEL
