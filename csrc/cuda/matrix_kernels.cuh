// Pair counts of every two of m vectors of n values.
//
// Each pair of positions is two bits of a vector: whether the first value is less, and whether the two are
// untied. So pairs are counted 32 at a time. For vectors a and b:
//   untied in both  popcount(untied_a & untied_b)
//   discordant      popcount((less_a ^ less_b) & untied_a & untied_b)
// Position i is paired with i + 1, ..., i + n / 2, wrapping around at the end. Word w holds the positions
// i = 32 (w % words_per_step), ... and the step d = 1 + w / words_per_step. Words are packed and counted in
// chunks, so that memory stays bounded.
#pragma once

#include "core/keys.h"
#include "core/pair_counts.h"
#include "cuda/kendall_kernels.cuh"
#include "cuda/kernel.cuh"
#include "cuda/teams.cuh"

namespace shfcas {

constexpr int64_t kLongestPackedVector = 8192;  // above, sorting is faster than n^2 / 64 words

constexpr int kMatrixThreads = 256;
constexpr int kMatrixTile = 64;  // vectors a, and vectors b, of a block
constexpr int kMatrixSide = 16;  // threads along a side of the tile
constexpr int kMatrixPerThread = kMatrixTile / kMatrixSide;
constexpr int kMatrixSlab = 16;    // words in shared memory at a time
constexpr int kMatrixRange = 512;  // words of a block

struct VectorFacts {
  int64_t invalid, distinct;
};

// The pairs of positions of each word.
struct PairWords {
  int n, words_per_step, count;

  SHFCAS_HD explicit PairWords(int64_t length)
      : n(static_cast<int>(length)), words_per_step((n + 31) / 32), count(n / 2 * words_per_step) {}
  SHFCAS_HD int step(int word) const { return 1 + word / words_per_step; }
  SHFCAS_HD int first(int word) const { return word % words_per_step * 32; }
  // Positions below this have a pair. Opposite positions would otherwise be paired twice.
  SHFCAS_HD int positions(int word) const { return 2 * step(word) == n ? n / 2 : n; }
  SHFCAS_HD unsigned mask(int word) const {
    const int bits = positions(word) - first(word);
    return bits >= 32 ? 0xffffffffu : (bits > 0 ? (1u << bits) - 1 : 0);
  }
};

// Checks each vector for NaN, and counts its distinct values if requested.
template <class T>
__global__ void __launch_bounds__(kMatrixThreads)
    describe_vectors(const T* x, int64_t m, int64_t n, bool count_distinct, VectorFacts* facts) {
  const BlockTeam<kMatrixThreads> team;
  for (int64_t v = blockIdx.x; v < m; v += gridDim.x) {
    const T* values = x + v * n;
    bool invalid = false;
    int64_t distinct = 0;
    for (int64_t i = threadIdx.x; i < n; i += kMatrixThreads) {
      const T mine = values[i];
      invalid = invalid || is_nan(mine);
      if (!count_distinct) continue;
      int64_t before = 0;
      while (before < i && values[before] != mine) ++before;
      distinct += before == i;
    }
    invalid = team.any(invalid);
    distinct = team.sum(distinct);
    if (threadIdx.x == 0) facts[v] = {invalid, distinct};
  }
}

// Packs words [first_word, first_word + count) of vector v to v * count, ... A warp packs 32 words one after
// another, and each lane keeps one of them. So the warp divides once for all of them, and writes them side by
// side. Numbers are compared as they are: what a NaN gives does not matter, and the zeros are equal.
template <class T>
__global__ void __launch_bounds__(kMatrixThreads)
    pack_pairs(const T* x, int64_t m, PairWords words, int first_word, int count, unsigned* less,
               unsigned* untied) {
  constexpr int kWarps = kMatrixThreads / kWarp;
  const int lane = threadIdx.x % kWarp, n = words.n;
  const int64_t groups = (count + kWarp - 1) / kWarp, step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; k < m * groups;
       k += step) {
    const int64_t v = k / groups;
    const int begin = static_cast<int>(k % groups) * kWarp, size = lesser(kWarp, count - begin);
    const T* values = x + v * n;
    int first = words.first(first_word + begin), d = words.step(first_word + begin);
    int positions = words.positions(first_word + begin);
    unsigned my_less = 0, my_untied = 0;
#pragma unroll 4
    for (int w = 0; w < size; ++w) {
      // Lanes behind the last position read that position, and do not branch.
      const int i = first + lane, here = lesser(i, n - 1), behind = here + d;
      const T a = values[here], b = values[behind < n ? behind : behind - n];
      const bool counts = i < positions;
      const bool is_less = counts & (a < b), is_untied = counts & (a != b);
      const unsigned less_bits = __ballot_sync(0xffffffffu, is_less);
      const unsigned untied_bits = __ballot_sync(0xffffffffu, is_untied);
      if (lane == w) {
        my_less = less_bits;
        my_untied = untied_bits;
      }
      first += kWarp;
      if (first < n) continue;
      first = 0;
      ++d;
      if (2 * d == n) positions = n / 2;
    }
    if (lane >= size) continue;
    less[v * count + begin + lane] = my_less;
    untied[v * count + begin + lane] = my_untied;
  }
}

// Adds the counts of a range of words to entries (a, b) of (m, m) matrices. A block per tile of vectors and
// range of words; tiles below the diagonal stay empty.
__device__ inline void count_words(const PairWords& words, int64_t m, int64_t a0, int64_t b0, int first_word,
                                   int count, int begin, int end, const unsigned* less,
                                   const unsigned* untied, Total* discordant, Total* untied_both) {
  constexpr int kPitch = kMatrixTile + 1;  // avoids bank conflicts when writing the words of one vector
  SHFCAS_SHARED(unsigned, less_a, kMatrixSlab* kPitch);
  SHFCAS_SHARED(unsigned, less_b, kMatrixSlab* kPitch);
  SHFCAS_SHARED(unsigned, untied_a, kMatrixSlab* kPitch);
  SHFCAS_SHARED(unsigned, untied_b, kMatrixSlab* kPitch);
  const int column = threadIdx.x % kMatrixSide, row = threadIdx.x / kMatrixSide;
  unsigned discordant_here[kMatrixPerThread][kMatrixPerThread] = {};
  unsigned untied_here[kMatrixPerThread][kMatrixPerThread] = {};
  unsigned all = 0;  // pairs of words without a tie in any vector of the tile

  for (int slab = begin; slab < end; slab += kMatrixSlab) {
    bool tied = false;
    const auto load = [&](int64_t first_vector, unsigned* to_less, unsigned* to_untied) {
      for (int k = threadIdx.x; k < kMatrixSlab * kMatrixTile; k += kMatrixThreads) {
        const int w = slab + k % kMatrixSlab;
        const int64_t vector = first_vector + k / kMatrixSlab;
        const bool here = w < end && vector < m;
        const int place = k % kMatrixSlab * kPitch + k / kMatrixSlab;
        to_less[place] = here ? less[vector * count + w] : 0;
        const unsigned bits = here ? untied[vector * count + w] : 0;
        to_untied[place] = bits;
        tied = tied || (here && bits != words.mask(first_word + w));
      }
    };
    load(a0, less_a, untied_a);
    load(b0, less_b, untied_b);
    tied = __syncthreads_or(tied) != 0;

    const int size = lesser(kMatrixSlab, end - slab);
    if (tied) {
      for (int w = 0; w < size; ++w) {
#pragma unroll
        for (int p = 0; p < kMatrixPerThread; ++p) {
          const int a = w * kPitch + row + p * kMatrixSide;
          const unsigned a_less = less_a[a], a_untied = untied_a[a];
#pragma unroll
          for (int q = 0; q < kMatrixPerThread; ++q) {
            const int b = w * kPitch + column + q * kMatrixSide;
            const unsigned both = a_untied & untied_b[b];
            discordant_here[p][q] += __popc((a_less ^ less_b[b]) & both);
            untied_here[p][q] += __popc(both);
          }
        }
      }
    } else {
      for (int w = 0; w < size; ++w) {
        all += __popc(words.mask(first_word + slab + w));
#pragma unroll
        for (int p = 0; p < kMatrixPerThread; ++p) {
          const unsigned a_less = less_a[w * kPitch + row + p * kMatrixSide];
#pragma unroll
          for (int q = 0; q < kMatrixPerThread; ++q)
            discordant_here[p][q] += __popc(a_less ^ less_b[w * kPitch + column + q * kMatrixSide]);
        }
      }
    }
    __syncthreads();
  }

  for (int p = 0; p < kMatrixPerThread; ++p)
    for (int q = 0; q < kMatrixPerThread; ++q) {
      const int64_t a = a0 + row + p * kMatrixSide, b = b0 + column + q * kMatrixSide;
      if (a >= m || b >= m || a > b) continue;
      atomicAdd(&discordant[a * m + b], static_cast<Total>(discordant_here[p][q]));
      atomicAdd(&untied_both[a * m + b], static_cast<Total>(untied_here[p][q] + all));
    }
}

template <int kRange>
__global__ void __launch_bounds__(kMatrixThreads)
    count_packed(PairWords words, int64_t m, int first_word, int count, const unsigned* less,
                 const unsigned* untied, Total* discordant, Total* untied_both) {
  const int64_t tiles = (m + kMatrixTile - 1) / kMatrixTile, ranges = (count + kRange - 1) / kRange;
  for (int64_t k = blockIdx.x; k < tiles * tiles * ranges; k += gridDim.x) {
    const int64_t a = k / ranges / tiles, b = k / ranges % tiles;
    const int begin = static_cast<int>(k % ranges) * kRange;
    if (a <= b)
      count_words(words, m, a * kMatrixTile, b * kMatrixTile, first_word, count, begin,
                  lesser(begin + kRange, count), less, untied, discordant, untied_both);
  }
}

// Statistic of a matrix: tau of a variant, or the normalized distance.
struct MatrixStatistic {
  bool distance;
  TauVariant variant;

  SHFCAS_INLINE double operator()(const PairCounts& counts, int64_t n) const {
    return distance ? distance_from_counts(counts, n, true) : tau_from_counts(counts, n, variant);
  }
  SHFCAS_INLINE bool needs_distinct() const { return !distance && variant == TauVariant::c; }
};

// Writes the statistics. Diagonal entry (a, a) of untied_both is the number of pairs untied in a.
template <class Statistic>
__global__ void __launch_bounds__(kMatrixThreads)
    write_matrix(int64_t m, int64_t n, const VectorFacts* facts, const Total* discordant,
                 const Total* untied_both, Statistic statistic, double* result) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kMatrixThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kMatrixThreads + threadIdx.x; k < m * m; k += step) {
    const int64_t a = k / m, b = k % m;
    if (a > b) continue;
    PairCounts counts = invalid_counts();
    if (!facts[a].invalid && !facts[b].invalid) {
      const int64_t pairs = num_pairs(n), untied_a = static_cast<int64_t>(untied_both[a * m + a]),
                    untied_b = static_cast<int64_t>(untied_both[b * m + b]),
                    untied = static_cast<int64_t>(untied_both[k]);
      counts =
          make_counts(n, static_cast<int64_t>(discordant[k]), pairs - untied_a, pairs - untied_b,
                      pairs - untied_a - untied_b + untied, lesser(facts[a].distinct, facts[b].distinct));
    }
    result[k] = result[b * m + a] = statistic(counts, n);
  }
}

// Mirrors the upper triangle of a matrix to the lower one.
template <class V>
__global__ void __launch_bounds__(kMatrixThreads) mirror(int64_t m, V* result) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kMatrixThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kMatrixThreads + threadIdx.x; k < m * m; k += step)
    if (k / m < k % m) result[k % m * m + k / m] = result[k];
}

// Returns the words of each vector to pack at a time: both kinds together take at most 128 MB.
inline int packed_words_at_once(int64_t m, const PairWords& words) {
  const int64_t most = greater<int64_t>(SHFCAS_WORDS_AT_ONCE / greater<int64_t>(m, 1), kMatrixSlab);
  return static_cast<int>(lesser<int64_t>(most, words.count));
}

template <class T>
int64_t matrix_scratch_bytes(int64_t m, int64_t n) {
  if (m == 0 || n == 0) return m * static_cast<int64_t>(sizeof(VectorFacts)) + 2 * m * m * 8;
  if (n > kLongestPackedVector) return dense_sort_bytes<T>(m, n);
  const int64_t words = packed_words_at_once(m, PairWords(n));
  return m * static_cast<int64_t>(sizeof(VectorFacts)) + 2 * m * m * 8 + 2 * m * words * 4;
}

// result: (m, m). x: (m, n).
template <class T>
void launch_matrix(const T* x, int64_t m, int64_t n, MatrixStatistic statistic, double* result, void* scratch,
                   cudaStream_t stream) {
  if (m == 0) return;
  const unsigned entries = grid_for((m * m + kMatrixThreads - 1) / kMatrixThreads);
  if (n > kLongestPackedVector) {
    // Vector a is paired with itself and all later vectors, as rows.
    for (int64_t a = 0; a < m; ++a) {
      KendallOutput row;
      (statistic.distance ? row.distance : row.tau) = result + a * m + a;
      row.variant = statistic.variant;
      launch_dense_sort(m - a, n, x + a * n, 0, x + a * n, scratch, stream, row);
    }
    const auto mirror_rows = mirror<double>;
    SHFCAS_LAUNCH(mirror_rows, entries, kMatrixThreads, 0, stream)(m, result);
    return;
  }

  const PairWords words(n);
  const int at_once = packed_words_at_once(m, words);
  auto* facts = static_cast<VectorFacts*>(scratch);
  auto* discordant = reinterpret_cast<Total*>(facts + m);
  auto* untied_both = discordant + m * m;
  auto* less = reinterpret_cast<unsigned*>(untied_both + m * m);
  auto* untied = less + m * at_once;
  const auto describe = describe_vectors<T>;
  SHFCAS_LAUNCH(describe, grid_for(m), kMatrixThreads, 0, stream)(x, m, n, statistic.needs_distinct(), facts);
  const auto clear = clear_totals<Total>;
  SHFCAS_LAUNCH(clear, static_cast<unsigned>((2 * m * m + kSortThreads - 1) / kSortThreads), kSortThreads, 0,
                stream)
  (discordant, 2 * m * m);
  const int64_t tiles = (m + kMatrixTile - 1) / kMatrixTile;
  for (int first = 0; first < words.count; first += at_once) {
    const int count = lesser(at_once, words.count - first);
    const auto pack = pack_pairs<T>;
    const int64_t groups = m * ((count + kWarp - 1) / kWarp), warps = kMatrixThreads / kWarp;
    SHFCAS_LAUNCH(pack, grid_for((groups + warps - 1) / warps), kMatrixThreads, 0, stream)
    (x, m, words, first, count, less, untied);
    const auto count_all = count_packed<kMatrixRange>;
    const int64_t ranges = (count + kMatrixRange - 1) / kMatrixRange;
    SHFCAS_LAUNCH(count_all, grid_for(tiles * tiles * ranges), kMatrixThreads, 0, stream)
    (words, m, first, count, less, untied, discordant, untied_both);
  }
  const auto write = write_matrix<MatrixStatistic>;
  SHFCAS_LAUNCH(write, entries, kMatrixThreads, 0, stream)
  (m, n, facts, discordant, untied_both, statistic, result);
}

}  // namespace shfcas
