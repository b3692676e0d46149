// A Kendall statistic of every pair of rows of one matrix.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "batch.h"
#include "cpu/aligned_buffer.h"
#include "cpu/count_rows.h"
#include "cpu/kernels.h"
#include "tau_variant.h"

namespace shfcas {
namespace {

constexpr int64_t kChunkBytes = 1 << 19;  // bytes of pair bits at a time, which fit the cache

// Tie counts of each vector, from counting it against itself.
struct VectorTies {
  std::vector<PairCounts> counts;
  bool any = false;
};

template <class T>
VectorTies vector_ties(const T* x, int64_t m, int64_t n, bool with_classes) {
  VectorTies ties{std::vector<PairCounts>(m)};
  count_rows(x, x, Rows{m, m * n, n, nullptr}, with_classes,
             EachRow([&](int64_t row, int64_t, const PairCounts& counts) { ties.counts[row] = counts; }));
  for (const PairCounts& counts : ties.counts) ties.any |= counts.tied_x > 0;
  return ties;
}

// Writes 32-bit keys that sort as the elements of a vector do.
template <class T>
void order_preserving_keys(const T* x, int64_t n, int32_t* keys) {
  if constexpr (sizeof(T) == sizeof(int32_t)) {
    for (int64_t i = 0; i < n; ++i) keys[i] = ordered_key(x[i]);
  } else {
    std::vector<int32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](int32_t a, int32_t b) { return ordered_key(x[a]) < ordered_key(x[b]); });
    int32_t rank = 0;
    for (int64_t k = 0; k < n; ++k) {
      if (k > 0 && ordered_key(x[order[k]]) != ordered_key(x[order[k - 1]])) ++rank;
      keys[order[k]] = rank;
    }
  }
}

// Counts the pairs of every two vectors from their pair bits. Calls sink(a, b, counts) for each a <= b.
template <class T, class Sink>
void count_by_bits(const T* x, int64_t m, int64_t n, const VectorTies& ties, const Sink& sink) {
  if (m == 0) return;
  const int64_t groups = (m + kPairGroup - 1) / kPairGroup, padded = groups * kPairGroup;
  AlignedBuffer<int32_t> columns;  // [group][element][vector]
  columns.reserve(padded * n);
  std::fill_n(columns.data(), padded * n, 0);
  torch::stable::parallel_for(0, m, row_grain(16 * n), [&](int64_t begin, int64_t end) {
    std::vector<int32_t> keys(n);
    for (int64_t v = begin; v < end; ++v) {
      order_preserving_keys(x + v * n, n, keys.data());
      int32_t* column = columns.data() + v / kPairGroup * n * kPairGroup + v % kPairGroup;
      for (int64_t i = 0; i < n; ++i) column[i * kPairGroup] = keys[i];
    }
  });

  const int64_t words = (num_pairs(n) + 31) / 32;
  const int64_t chunk = std::min(words, std::max<int64_t>(16, kChunkBytes / (padded * 2 * 4)));
  const int64_t group_words = chunk * kPairGroup;
  AlignedBuffer<uint32_t> less, untied;  // [group][word][vector]
  AlignedBuffer<int32_t> discordant, comparable;
  less.reserve(groups * group_words);
  untied.reserve(groups * group_words);
  discordant.reserve(padded * padded);
  std::fill_n(discordant.data(), padded * padded, 0);
  if (ties.any) {
    comparable.reserve(padded * padded);
    std::fill_n(comparable.data(), padded * padded, 0);
  }
  const auto bits_of = [&](int64_t group) {
    return PairBits{less.data() + group * group_words, untied.data() + group * group_words};
  };
  const PairBitKernels& bit_kernels = pair_bit_kernels();
  int64_t i = 0, j = 1;
  for (int64_t done = 0; done < words; done += chunk) {
    const int64_t size = std::min(chunk, words - done);
    int64_t next_i = i, next_j = j;
    torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        int64_t from_i = i, from_j = j;
        bit_kernels.pack_pairs(columns.data() + group * n * kPairGroup, n, from_i, from_j, size,
                               less.data() + group * group_words, untied.data() + group * group_words);
        if (group == 0) {
          next_i = from_i;
          next_j = from_j;
        }
      }
    });
    i = next_i;
    j = next_j;
    // Group g of the triangle goes with group groups - 1 - g: each such pair is the same amount of work.
    torch::stable::parallel_for(0, (groups + 1) / 2, 1, [&](int64_t begin, int64_t end) {
      const auto compare = [&](int64_t a) {
        for (int first = 0; first < kPairGroup && a * kPairGroup + first < m; first += kPairRows)
          for (int64_t b = a; b < groups; ++b) {
            int32_t *against[kPairRows], *both[kPairRows];
            for (int r = 0; r < kPairRows; ++r) {
              const int64_t place = (a * kPairGroup + first + r) * padded + b * kPairGroup;
              against[r] = discordant.data() + place;
              both[r] = ties.any ? comparable.data() + place : nullptr;
            }
            bit_kernels.compare_pairs(bits_of(a), first, bits_of(b), size, against,
                                      ties.any ? both : nullptr);
          }
      };
      for (int64_t a = begin; a < end; ++a) {
        compare(a);
        if (groups - 1 - a != a) compare(groups - 1 - a);
      }
    });
  }

  torch::stable::parallel_for(0, m, row_grain(m), [&](int64_t begin, int64_t end) {
    for (int64_t a = begin; a < end; ++a)
      for (int64_t b = a; b < m; ++b) {
        const PairCounts &ties_a = ties.counts[a], &ties_b = ties.counts[b];
        if (!ties_a.valid() || !ties_b.valid()) {
          sink(a, b, invalid_counts());
          continue;
        }
        const int64_t place = a * padded + b, against = discordant[place];
        const int64_t tied_both =
            ties.any ? comparable[place] - num_pairs(n) + ties_a.tied_x + ties_b.tied_x : 0;
        sink(a, b,
             make_counts(n, against, ties_a.tied_x, ties_b.tied_x, tied_both,
                         std::min(ties_a.classes, ties_b.classes)));
      }
  });
}

// Returns whether comparing the bits of n (n - 1) / 2 pairs is faster than sorting n elements.
inline bool bits_are_faster(int64_t m, int64_t n) {
  const double padded = static_cast<double>((m + kPairGroup - 1) / kPairGroup * kPairGroup);
  const double full = static_cast<double>(m) / padded;
  return static_cast<double>(n) <= static_cast<double>(pair_bit_kernels().max_length) * full * full;
}

template <class T, class Sink>
void count_by_sorting(const T* x, int64_t m, int64_t n, bool with_classes, const Sink& sink) {
  // Row i of the triangle goes with row m - 1 - i, as above.
  torch::stable::parallel_for(0, (m + 1) / 2, 1, [&](int64_t begin, int64_t end) {
    const auto long_rows = kernels<T>().make_long_row_counter(with_classes);
    const auto count = [&](int64_t a) {
      for (int64_t b = a; b < m; ++b) {
        const int64_t offset = 0;
        PairCounts counts;
        long_rows->count(x + a * n, x + b * n, &offset, &n, 1, &counts);
        sink(a, b, counts);
      }
    };
    for (int64_t a = begin; a < end; ++a) {
      count(a);
      if (m - 1 - a != a) count(m - 1 - a);
    }
  });
}

// Returns the symmetric (M, M) matrix of statistic(counts, n) over all pairs of rows of x, (M, N), the
// diagonal included.
template <class Statistic>
Tensor pair_matrix(const char* op, const Tensor& x, bool with_classes, const Statistic& statistic) {
  const ScalarType dtype = compute_dtype(op, "x", x, Numbers::any);
  check_dim(op, "x", x, 2);
  const int64_t m = x.size(0), n = x.size(1);
  check_row_length(op, "x", n);
  const Tensor values = prepared(x, dtype);
  const Tensor result = torch::stable::new_empty(values, {m, m}, ScalarType::Double);
  double* out = mutable_data<double>(result);
  const auto sink = [&](int64_t a, int64_t b, const PairCounts& counts) {
    out[a * m + b] = out[b * m + a] = statistic(counts, n);
  };
  dispatch_any(dtype, [&](auto number) {
    using T = decltype(number);
    const T* data = const_data<T>(values);
    if (n < 2 || bits_are_faster(m, n))
      count_by_bits(data, m, n, vector_ties(data, m, n, with_classes), sink);
    else
      count_by_sorting(data, m, n, with_classes, sink);
  });
  return result;
}

Tensor kendall_tau_matrix(const Tensor& x, const std::string& variant) {
  const TauVariant tau = parse_tau_variant("kendall_tau_matrix", variant);
  return pair_matrix("kendall_tau_matrix", x, tau == TauVariant::c,
                     [=](const PairCounts& counts, int64_t n) { return tau_from_counts(counts, n, tau); });
}

Tensor kendall_distance_matrix(const Tensor& x) {
  return pair_matrix("kendall_distance_matrix", x, false, [](const PairCounts& counts, int64_t n) {
    return distance_from_counts(counts, n, true);
  });
}

}  // namespace
}  // namespace shfcas

STABLE_TORCH_LIBRARY_IMPL(shfcas, CPU, library) {
  library.impl("kendall_tau_matrix", TORCH_BOX(&shfcas::kendall_tau_matrix));
  library.impl("kendall_distance_matrix", TORCH_BOX(&shfcas::kendall_distance_matrix));
}
