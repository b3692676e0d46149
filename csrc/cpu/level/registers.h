// Vector registers of this SIMD level, SHFCAS_REGISTER_BYTES wide. Arithmetic and comparisons work per lane.
//
// All of csrc/cpu/level/ is compiled once per instruction set, by csrc/cpu/level_*.cpp. Each level has its
// own namespace, SHFCAS_LEVEL.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "core/keys.h"
#include "core/macros.h"

namespace shfcas::SHFCAS_LEVEL {

constexpr int kBytes = SHFCAS_REGISTER_BYTES;

template <class Lane>
struct RegisterOf {
  typedef Lane type __attribute__((vector_size(kBytes)));
};
template <class Lane>
using Register = typename RegisterOf<Lane>::type;

template <class Lane>
constexpr int kLanesOf = kBytes / static_cast<int>(sizeof(Lane));

// Exchanges the off-diagonal halves of two registers. log2(C) such steps transpose C registers that hold
// C x C tiles side by side.
template <int Step, class V, size_t... I>
SHFCAS_INLINE void exchange_halves(V& a, V& b, std::index_sequence<I...>) {
  constexpr int lanes = sizeof...(I);
  const V low =
      __builtin_shufflevector(a, b, (I & Step ? lanes + static_cast<int>(I) - Step : static_cast<int>(I))...);
  b = __builtin_shufflevector(a, b, (I & Step ? lanes + static_cast<int>(I) : static_cast<int>(I) + Step)...);
  a = low;
}

template <int Columns, class V>
SHFCAS_INLINE void transpose(V* rows) {
  constexpr auto lanes = std::make_index_sequence<sizeof(V) / sizeof(rows[0][0])>{};
  if constexpr (Columns >= 2)
    for (int i = 0; i < Columns; i += 2) exchange_halves<1>(rows[i], rows[i + 1], lanes);
  if constexpr (Columns >= 4)
    for (int i = 0; i < Columns; i += 4)
      for (int k = i; k < i + 2; ++k) exchange_halves<2>(rows[k], rows[k + 2], lanes);
  if constexpr (Columns >= 8)
    for (int i = 0; i < Columns; i += 8)
      for (int k = i; k < i + 4; ++k) exchange_halves<4>(rows[k], rows[k + 4], lanes);
}

// Columns of a tile: half of the widest register, so that short rows fill a tile.
template <class Lane>
constexpr int kTile = (kBytes < 32 ? kBytes : 32) / static_cast<int>(sizeof(Lane));

// Part of a register that holds one row of a tile.
template <class Lane>
struct TileRowOf {
  typedef Lane type __attribute__((vector_size(kTile<Lane> * sizeof(Lane))));
};
template <class Lane>
using TileRow = typename TileRowOf<Lane>::type;

template <class Lane, size_t... I>
SHFCAS_INLINE Register<Lane> join(const TileRow<Lane>& a, const TileRow<Lane>& b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, static_cast<int>(I)...);
}
template <class Lane, size_t... I>
SHFCAS_INLINE TileRow<Lane> half(const Register<Lane>& v, int which, std::index_sequence<I...>) {
  constexpr int tile = sizeof...(I);
  return which == 0 ? __builtin_shufflevector(v, v, static_cast<int>(I)...)
                    : __builtin_shufflevector(v, v, tile + static_cast<int>(I)...);
}

template <class V>
SHFCAS_INLINE V load(const void* from) {
  V value;
  memcpy(&value, from, sizeof(V));
  return value;
}
template <class V>
SHFCAS_INLINE void store(void* to, const V& value) {
  memcpy(to, &value, sizeof(V));
}

// Returns whether a bit of the register is set.
template <class V>
SHFCAS_INLINE bool any(const V& v) {
#if SHFCAS_REGISTER_BYTES == 64
  return _mm512_test_epi32_mask((__m512i)v, (__m512i)v) != 0;
#elif SHFCAS_REGISTER_BYTES == 32
  return !_mm256_testz_si256((__m256i)v, (__m256i)v);
#else
  uint64_t words[kBytes / 8];
  store(words, v);
  return (words[0] | words[1]) != 0;
#endif
}

// Reads a tile: columns[i][l] = values[offsets[l] + i] for i < kTile, one row per lane.
template <class Lane>
SHFCAS_INLINE void load_tile(const Lane* values, const int64_t* offsets, Register<Lane>* columns) {
  constexpr int tile = kTile<Lane>, lanes = kLanesOf<Lane>;
  for (int i = 0; i < tile; ++i) {
    if constexpr (tile == lanes)
      columns[i] = load<Register<Lane>>(values + offsets[i]);
    else
      columns[i] =
          join<Lane>(load<TileRow<Lane>>(values + offsets[i]),
                     load<TileRow<Lane>>(values + offsets[i + tile]), std::make_index_sequence<lanes>{});
  }
  transpose<tile>(columns);
}

// Writes a tile: values[offsets[l] + i] = columns[i][l]. Leaves the columns transposed.
template <class Lane>
SHFCAS_INLINE void store_tile(Register<Lane>* columns, Lane* values, const int64_t* offsets) {
  constexpr int tile = kTile<Lane>, lanes = kLanesOf<Lane>;
  transpose<tile>(columns);
  for (int i = 0; i < tile; ++i) {
    if constexpr (tile == lanes) {
      store(values + offsets[i], columns[i]);
    } else {
      store(values + offsets[i], half<Lane>(columns[i], 0, std::make_index_sequence<tile>{}));
      store(values + offsets[i + tile], half<Lane>(columns[i], 1, std::make_index_sequence<tile>{}));
    }
  }
}

}  // namespace shfcas::SHFCAS_LEVEL
