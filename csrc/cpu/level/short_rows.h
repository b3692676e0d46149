// Pair counts of a block of short rows of equal length, one row per lane.
//
// A sorting network sorts the rows by (x, y). Then x never descends, and a pair is discordant exactly if y
// descends: one comparison per pair, with or without ties. Runs of equal elements give the ties. Short rows
// are sorted by x alone, with y as a payload, and again by (x, y) only if x has ties.
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

// x and y of one element per lane, ordered by x only.
template <class K>
struct ByX {
  Register<K> x, y;
};

template <class K>
SHFCAS_INLINE void exchange(ByX<K>& a, ByX<K>& b) {
  using V = Register<K>;
  constexpr bool masks = kBytes == 64;  // a blend is one instruction, and min and max share a unit
  const V swap = a.x > b.x;
  const V low = masks ? (swap ? b.x : a.x) : (a.x < b.x ? a.x : b.x),
          high = masks ? (swap ? a.x : b.x) : (a.x > b.x ? a.x : b.x);
  const V first = swap ? b.y : a.y, second = swap ? a.y : b.y;
  a = {low, first};
  b = {high, second};
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

// Returns a mask of the lanes in which two neighbours of n sorted keys are equal. key(i) is key i.
template <class K, class KeyAt>
SHFCAS_INLINE Register<K> equal_neighbours(int limit, int n, const KeyAt& key) {
  using U = Register<std::make_unsigned_t<K>>;
  U least = ~U{};
  for (int i = 1; i < limit; ++i)
    if (i < n) {
      const U step = (U)key(i) - (U)key(i - 1);
      least = step < least ? step : least;
    }
  return least == 0;
}

// Returns a mask of the lanes with a NaN, from the keys at both ends of the sorted rows.
template <class T>
SHFCAS_INLINE Register<Key<T>> beyond_infinity(const Register<Key<T>>& first, const Register<Key<T>>& last) {
  if constexpr (KeyOf<T>::floating)
    return (first < -KeyOf<T>::infinity) | (last > KeyOf<T>::infinity);
  else
    return Register<Key<T>>{};
}

// Counts rows of n <= Size elements, for one register of lanes from `lane` on; element i of each lane is in
// x[i] and y[i]. Unrolled if Size <= kSortBlock.
template <class T, int Size>
SHFCAS_INLINE void count_columns(const Register<Key<T>>* x, Register<Key<T>>* y, int n, int lane,
                                 BlockCounts<Key<T>>& counts) {
  using K = Key<T>;
  using V = Register<K>;
  constexpr bool unrolled = Size <= kSortBlock;
  const int limit = unrolled ? Size : n;
  const V largest = V{} + kLargest<V>;
  V tied_x = {}, tied_y = {}, tied_both = {}, discordant, x_first, x_last;

  Single<K> sorted_y[Size];
  const auto padded = [&](const V* values, int i) __attribute__((always_inline)) {
    V key = i >= n ? largest : values[i];
    if (i < n) bits_to_key<T>(key);
    return key;
  };
  bool x_ties = true;
  if constexpr (unrolled) {
    if (!counts.expect_ties) {
      ByX<K> elements[Size];
      for (int i = 0; i < Size; ++i) {
        elements[i] = {padded(x, i), padded(y, i)};
        sorted_y[i].key = elements[i].y;
      }
      run_network<kSort<Size>>(elements);
      x_ties = any(
          equal_neighbours<K>(Size, n, [&](int i) __attribute__((always_inline)) { return elements[i].x; }));
      if (!x_ties) {
        V ys[(Size + 3) / 4 * 4];
        for (int i = 0; i < Size; ++i) ys[i] = elements[i].y;
        x_first = elements[0].x;
        x_last = elements[n - 1].x;
        discordant = count_descents(ys, Size);
      }
    }
  }
  if (x_ties) {
    SortedPairs<K, Size> pairs;
    for (int i = 0; i < limit; ++i) {
      const V y_key = padded(y, i);
      pairs.set(i, padded(x, i), y_key);
      sorted_y[i].key = y_key;
    }
    if constexpr (!unrolled)
      for (int i = n, end = power_of_two(n); i < end; ++i) {
        pairs.set(i, largest, largest);
        sorted_y[i].key = largest;
      }
    pairs.sort(n);
    V run_x = {}, run_both = {}, previous, current, ys[(Size + 3) / 4 * 4];
    pairs.get(0, previous, ys[0]);
    x_first = previous;
    for (int i = 1; i < limit; ++i) {
      pairs.get(i, current, ys[i]);
      if (i < n) {
        const V same_x = current == previous;
        count_ties(same_x, run_x, tied_x);
        count_ties(same_x & (ys[i] == ys[i - 1]), run_both, tied_both);
        previous = current;
      }
    }
    x_last = previous;
    discordant = count_descents(ys, limit);
    counts.expect_ties = any(tied_x);
  }

  sort_up_to<Size>(sorted_y, n);
  if (any(equal_neighbours<K>(limit, n,
                              [&](int i) __attribute__((always_inline)) { return sorted_y[i].key; }))) {
    V run_y = {};
    for (int i = 1; i < limit; ++i)
      if (i < n) count_ties(sorted_y[i].key == sorted_y[i - 1].key, run_y, tied_y);
  }
  const V invalid =
      beyond_infinity<T>(x_first, x_last) | beyond_infinity<T>(sorted_y[0].key, sorted_y[n - 1].key);
  memcpy(counts.discordant + lane, &discordant, kBytes);
  memcpy(counts.tied_x + lane, &tied_x, kBytes);
  memcpy(counts.tied_y + lane, &tied_y, kBytes);
  memcpy(counts.tied_both + lane, &tied_both, kBytes);
  memcpy(counts.invalid + lane, &invalid, kBytes);
}

// Registers of lanes that hold rows of Size elements, in whole tiles.
template <class K, int Size>
constexpr int kColumns = (Size + kTile<K> - 1) / kTile<K> * kTile<K>;

template <class T, int Size>
SHFCAS_INLINE void count_part(const T* x, const T* y, const int64_t* offsets, int n, int lane,
                              BlockCounts<Key<T>>& counts) {
  using K = Key<T>;
  Register<K> xs[kColumns<K, Size>], ys[kColumns<K, Size>];
  const auto *x_bits = reinterpret_cast<const K*>(x), *y_bits = reinterpret_cast<const K*>(y);
  for (int i = 0; i < (Size <= kSortBlock ? Size : n); i += kTile<K>) {
    load_tile<K>(x_bits + i, offsets + lane, xs + i);
    load_tile<K>(y_bits + i, offsets + lane, ys + i);
  }
  count_columns<T, Size>(xs, ys, n, lane, counts);
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
