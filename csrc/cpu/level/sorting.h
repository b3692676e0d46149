// Sorting networks: sort many sequences at once, one per lane. An exchange puts the smaller element first.
//
// Elements at or beyond n are pads that compare as the largest, and no exchange moves them. So the network of
// the next power of two sorts any n, and exchanges that only touch pads are skipped.
#pragma once

#include "cpu/level/registers.h"

namespace shfcas::SHFCAS_LEVEL {

// One key per lane.
template <class K>
struct Single {
  Register<K> key;
};

template <class K>
SHFCAS_INLINE void exchange(Single<K>& a, Single<K>& b) {
  const Register<K> low = a.key < b.key ? a.key : b.key;
  b.key ^= a.key ^ low;  // the larger key; processors have fewer units for max than for bit operations
  a.key = low;
}

constexpr int kSortBlock = 16;  // elements sorted in registers

// A list of exchanges: element low[i] with element high[i].
template <int Capacity>
struct Network {
  int size = 0;
  uint8_t low[Capacity] = {}, high[Capacity] = {};

  constexpr void add(int a, int b) {
    low[size] = static_cast<uint8_t>(a);
    high[size++] = static_cast<uint8_t>(b);
  }
};

// Batcher's odd-even merge sort of N elements.
template <int N>
constexpr auto kSort = [] {
  Network<N * N> network;
  for (int p = 1; p < N; p *= 2)
    for (int k = p; k >= 1; k /= 2)
      for (int j = k % p; j + k < N; j += 2 * k)
        for (int i = 0; i < k && i + j + k < N; ++i)
          if ((i + j) / (2 * p) == (i + j + k) / (2 * p)) network.add(i + j, i + j + k);
  return network;
}();

// Levels of a bitonic merge of 2^Levels elements: exchanges of distance 2^(Levels - 1), then half as far,
// to 1.
template <int Levels>
constexpr auto kMerge = [] {
  Network<(Levels << Levels)> network;
  for (int k = 1 << (Levels - 1); k >= 1; k /= 2)
    for (int t = 0; t < 1 << Levels; ++t)
      if (!(t & k)) network.add(t, t + k);
  return network;
}();

// The first level of a merge compares an ascending run with the next run read backwards. Levels - 1 more
// follow. The mirrored half is second, and descends.
template <int Levels>
constexpr auto kFirstMerge = [] {
  Network<(Levels << Levels)> network;
  constexpr int half = 1 << (Levels - 1);
  for (int t = 0; t < half; ++t) network.add(t, half + t);
  for (int k = half / 2; k >= 1; k /= 2)
    for (int t = 0; t < half; ++t)
      if (!(t & k)) {
        network.add(t, t + k);
        network.add(half + t + k, half + t);
      }
  return network;
}();

// Indices are compile-time constants from here on, so that the elements stay in registers.
template <const auto& network, class E, size_t... I>
SHFCAS_INLINE void run_network(E* r, std::index_sequence<I...>) {
  (exchange(r[network.low[I]], r[network.high[I]]), ...);
}

template <const auto& network, class E>
SHFCAS_INLINE void run_network(E* r) {
  run_network<network>(r, std::make_index_sequence<network.size>{});
}

// Runs a network on the elements at v[0], v[step], v[2 step], ...
template <const auto& network, class E, size_t... T>
SHFCAS_INLINE void run_on(E* v, int step, std::index_sequence<T...>) {
  E r[] = {v[static_cast<int>(T) * step]...};
  run_network<network>(r);
  ((v[static_cast<int>(T) * step] = r[T]), ...);
}

// Runs a network on the elements at v[0], v[step], ... and then w[0], w[-step], ...
template <const auto& network, class E, size_t... T>
SHFCAS_INLINE void run_mirrored(E* v, E* w, int step, std::index_sequence<T...>) {
  constexpr int half = sizeof...(T);
  E r[] = {v[static_cast<int>(T) * step]..., w[-static_cast<int>(T) * step]...};
  run_network<network>(r);
  ((v[static_cast<int>(T) * step] = r[T]), ...);
  ((w[-static_cast<int>(T) * step] = r[half + T]), ...);
}

template <int Levels, class E>
SHFCAS_INLINE void merge_pass(E* v, int begin, int distance, int n) {
  const int step = distance >> (Levels - 1);
  for (int i = begin; i < begin + step && i < n; ++i)
    run_on<kMerge<Levels>>(v + i, step, std::make_index_sequence<(1 << Levels)>{});
}

template <int Levels, class E>
SHFCAS_INLINE void first_merge_pass(E* v, int run) {
  const int step = run >> (Levels - 1), last = 2 * run - 1;
  for (int i = 0; i < step; ++i)
    run_mirrored<kFirstMerge<Levels>>(v + i, v + last - i, step,
                                      std::make_index_sequence<(1 << (Levels - 1))>{});
}

// Returns the size of a buffer for n elements and the pads that sort_lanes() needs after them.
inline int power_of_two(int n) {
  int power = kSortBlock;
  while (power < n) power *= 2;
  return power;
}

// Sorts v[0, n), n > 0; v[n, power_of_two(n)) are pads.
template <class E>
inline void sort_lanes(E* v, int n) {
  for (int begin = 0; begin < n; begin += kSortBlock)
    run_on<kSort<kSortBlock>>(v + begin, 1, std::make_index_sequence<kSortBlock>{});
  for (int run = kSortBlock; run < n; run *= 2)
    for (int begin = 0; begin + run < n; begin += 2 * run) {
      int distance = run / 2;  // distance of the next level
      if (run == kSortBlock) {
        first_merge_pass<1>(v + begin, run);
      } else if (run == 2 * kSortBlock) {
        first_merge_pass<2>(v + begin, run);
        distance /= 2;
      } else {
        first_merge_pass<3>(v + begin, run);
        distance /= 4;
      }
      const int end = begin + 2 * run < n ? begin + 2 * run : n;
      for (int levels; distance >= kSortBlock; distance >>= levels) {
        levels = distance >= 4 * kSortBlock ? 3 : (distance >= 2 * kSortBlock ? 2 : 1);
        for (int block = begin; block < end; block += 2 * distance) {
          if (levels == 3)
            merge_pass<3>(v, block, distance, end);
          else if (levels == 2)
            merge_pass<2>(v, block, distance, end);
          else
            merge_pass<1>(v, block, distance, end);
        }
      }
      for (int block = begin; block < end; block += kSortBlock) merge_pass<4>(v, block, kSortBlock / 2, end);
    }
}

// Sorts v[0, n), n <= Size, with pads up to Size.
template <int Size, class E>
SHFCAS_INLINE void sort_up_to(E* v, int n) {
  if constexpr (Size <= kSortBlock)
    run_network<kSort<Size>>(v);
  else
    sort_lanes(v, n);
}

// Sorts the first n words of kWordLanes rows side by side. Row r is words[r * pitch, r * pitch + n); pitch is
// at least n rounded up to a multiple of 4. columns is scratch memory of power_of_two(n) registers, each with
// the words of kLanesOf<int64_t> rows.
inline void sort_words(int64_t* words, int64_t pitch, int n, int64_t* columns) {
  constexpr int tile = kTile<int64_t>, lanes = kLanesOf<int64_t>;
  auto* elements = reinterpret_cast<Single<int64_t>*>(columns);
  const int padded = power_of_two(n);
  int64_t offsets[lanes];
  for (int l = 0; l < lanes; ++l) offsets[l] = l * pitch;
  for (int lane = 0; lane < kWordLanes; lane += lanes) {
    int64_t* rows = words + lane * pitch;
    Register<int64_t> columns_of_tile[tile];
    for (int i = 0; i < n; i += tile) {
      load_tile<int64_t>(rows + i, offsets, columns_of_tile);
      for (int k = 0; k < tile; ++k) elements[i + k].key = columns_of_tile[k];
    }
    for (int i = n; i < padded; ++i) elements[i].key = Register<int64_t>{} + INT64_MAX;
    sort_lanes(elements, n);
    for (int i = 0; i < n; i += tile) {
      for (int k = 0; k < tile; ++k) columns_of_tile[k] = elements[i + k].key;
      store_tile<int64_t>(columns_of_tile, rows + i, offsets);
    }
  }
}

}  // namespace shfcas::SHFCAS_LEVEL
