// Log-probabilities of labels, entropies, and their gradient: see cpu/token_statistics.cpp. A block per
// position (b, t) reads its v logits once, 16 bytes per thread and load. It keeps a running maximum and
// running sums of exponentials. The sum over t is in double; its order depends only on the number of
// positions.
//
//   logits  (b, t, v), any strides of b and t, stride 1 of v
//   labels  (b, t)
//   mask    (b, t), or null if every position counts; masked positions are not read
// A counted label outside [0, v) makes its log-probability, its sequence and its normalizer NaN.
#pragma once

#include <cmath>

#include "cuda/kernel.cuh"
#include "cuda/teams.cuh"

namespace shfcas {

constexpr int kLogprobThreads = 256;

using LogprobTeam = BlockTeam<kLogprobThreads>;

__device__ inline double widen(double value) { return value; }
__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ inline void narrow(double value, double& result) { result = value; }
__device__ inline void narrow(float value, float& result) { result = value; }
__device__ inline void narrow(float value, __half& result) { result = __float2half(value); }
__device__ inline void narrow(float value, __nv_bfloat16& result) { result = __float2bfloat16(value); }

template <class T>
using Wide = decltype(widen(T{}));

// e^x. For float by the 2^x of the hardware: a relative error of 2^-22 + |x| 2^-24, and 0 below 2^-126. The
// accurate expf takes about ten instructions, more than there is time for while a logit of 16 bits is read.
__device__ inline double exponential(double x) { return std::exp(x); }
__device__ inline float exponential(float x) {
  constexpr float kLog2E = 1.44269504f;
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * kLog2E));
  return result;
#else
  return std::exp2(x * kLog2E);
#endif
}

template <class T>
struct Positions {
  const T* logits;
  const int64_t* labels;
  const bool* mask;
  int64_t sequences, length, vocabulary;
  int64_t sequence_stride, position_stride;
  double inverse;  // 1 / temperature

  SHFCAS_INLINE int64_t count() const { return sequences * length; }
  SHFCAS_INLINE bool counts(int64_t position) const { return !mask || mask[position]; }
  SHFCAS_INLINE bool has_label(int64_t position) const {
    return labels[position] >= 0 && labels[position] < vocabulary;
  }
  SHFCAS_INLINE const T* row(int64_t position) const {
    return logits + position / length * sequence_stride + position % length * position_stride;
  }
};

// Sums over the values added so far: of exp(value - maximum), and of exp(value - maximum) (value - maximum).
template <class W, bool kEntropy>
struct RunningSums {
  W maximum = -INFINITY, sum = 0, weighted = 0;

  // Makes exp(-inf - -inf) 0.
  static __device__ W finite(W maximum) { return maximum == -static_cast<W>(INFINITY) ? 0 : maximum; }

  // Changes the maximum that the sums refer to.
  __device__ void rebase(W base) {
    const W scale = exponential(maximum - base);
    if (kEntropy) weighted = scale * (weighted + sum * (finite(maximum) - base));
    sum *= scale;
  }

  // Adds logits, which are multiplied by inverse > 0.
  template <int kSize>
  __device__ void add(const W (&logits)[kSize], W inverse) {
    W largest = logits[0];
    for (int i = 1; i < kSize; ++i) largest = std::fmax(largest, logits[i]);  // ignores NaN
    const W highest = std::fmax(maximum, largest * inverse), base = finite(highest);
    rebase(base);
    for (int i = 0; i < kSize; ++i) {
      const W x = logits[i] * inverse - base, weight = exponential(x);  // propagates NaN
      sum += weight;
      if (kEntropy) weighted += weight > 0 ? weight * x : 0;  // 0 log 0 is 0
    }
    maximum = highest;
  }

  // Returns the total over the team.
  template <class Team>
  __device__ RunningSums total(const Team& team) const {
    RunningSums own = *this, all;
    all.maximum = team.reduce(maximum, [](W a, W b) { return greater(a, b); });
    own.rebase(finite(all.maximum));
    all.sum = team.sum(own.sum);
    if (kEntropy) all.weighted = team.sum(own.weighted);
    return all;
  }

  __device__ W log_probability(W value) const { return value - maximum - std::log(sum); }
  __device__ W entropy() const { return std::log(sum) - weighted / sum; }
};

// Split of a row into vectors aligned to 16 bytes, and a head and a tail that are read one value at a time.
template <class T>
struct Split {
  int64_t head, vectors;
  __device__ Split(const T* row, int64_t n) {
    const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
    head = lesser<int64_t>(past == 0 ? 0 : Vector<T>::kSize - past, n);
    vectors = (n - head) / Vector<T>::kSize;
  }
  __device__ int64_t tail() const { return head + vectors * Vector<T>::kSize; }
};

template <bool kEntropy, class T>
__device__ RunningSums<Wide<T>, kEntropy> sum_row(const T* row, int64_t n, Wide<T> inverse) {
  using W = Wide<T>;
  constexpr int kSize = Vector<T>::kSize;
  const Split<T> split(row, n);
  RunningSums<W, kEntropy> running;
  const auto add_one = [&](int64_t k) {
    const W logit[1] = {widen(row[k])};
    running.add(logit, inverse);
  };
  for (int64_t k = threadIdx.x; k < split.head; k += kLogprobThreads) add_one(k);
  const auto* vectors = reinterpret_cast<const Vector<T>*>(row + split.head);
#pragma unroll 2
  for (int64_t k = threadIdx.x; k < split.vectors; k += kLogprobThreads) {
    const Vector<T> vector = vectors[k];
    W logits[kSize];
    for (int i = 0; i < kSize; ++i) logits[i] = widen(vector.value[i]);
    running.add(logits, inverse);
  }
  for (int64_t k = split.tail() + threadIdx.x; k < n; k += kLogprobThreads) add_one(k);
  return running.total(LogprobTeam{});
}

// Results per position, and per sequence. entropy may be null.
template <class W>
struct TokenResults {
  double* exact;  // scratch memory: log-probabilities before they are rounded
  W *sums, *logprobs, *entropy;
  double* normalizer;  // 2 per position
};

template <bool kEntropy, class T>
__global__ void __launch_bounds__(kLogprobThreads)
    position_statistics(Positions<T> positions, TokenResults<Wide<T>> results) {
  using W = Wide<T>;
  for (int64_t p = blockIdx.x; p < positions.count(); p += gridDim.x) {
    W logprob = 0, base = 0, sum = 1, entropy = 0;
    if (positions.counts(p)) {
      const bool valid = positions.has_label(p);
      const T* row = positions.row(p);
      const W inverse = static_cast<W>(positions.inverse);
      const auto all = sum_row<kEntropy>(row, positions.vocabulary, inverse);
      logprob = valid ? all.log_probability(widen(row[positions.labels[p]]) * inverse) : static_cast<W>(NAN);
      base = all.finite(all.maximum);
      sum = valid ? all.sum : static_cast<W>(NAN);
      if (kEntropy) entropy = all.entropy();
    }
    if (threadIdx.x != 0) continue;
    results.exact[p] = logprob;
    results.logprobs[p] = logprob;
    results.normalizer[2 * p] = base;
    results.normalizer[2 * p + 1] = sum;
    if (kEntropy) results.entropy[p] = entropy;
  }
}

template <class W>
__global__ void __launch_bounds__(kLogprobThreads)
    sum_positions(const double* logprobs, int64_t sequences, int64_t length, W* result) {
  const LogprobTeam team;
  for (int64_t b = blockIdx.x; b < sequences; b += gridDim.x) {
    double sum = 0;
    for (int64_t t = threadIdx.x; t < length; t += kLogprobThreads) sum += logprobs[b * length + t];
    sum = team.sum(sum);
    if (threadIdx.x == 0) result[b] = static_cast<W>(sum);
  }
}

// Gradients per position, and the results that they need. entropy_gradient may be null.
struct TokenGradients {
  const double *gradient, *entropy_gradient;
  const double *entropy, *normalizer;
};

// Writes row p of result, contiguous.
template <bool kEntropy, class T>
__global__ void __launch_bounds__(kLogprobThreads, 3)
    position_gradients(Positions<T> positions, TokenGradients from, T* result) {
  using W = Wide<T>;
  constexpr int kSize = Vector<T>::kSize;
  for (int64_t p = blockIdx.x; p < positions.count(); p += gridDim.x) {
    const int64_t n = positions.vocabulary;
    const bool counts = positions.counts(p);
    const T* row = positions.row(p);
    T* out = result + p * n;

    // With x = logit / temperature - base: exp(x) (constant + slope x), plus at_label at the label.
    const W inverse = static_cast<W>(positions.inverse);
    W base = 0, constant = 0, slope = 0, at_label = 0;
    int64_t label = -1;
    if (counts) {
      const double sum = from.normalizer[2 * p + 1];
      double gradient = from.gradient[p];
      at_label = static_cast<W>(gradient * positions.inverse);
      if (kEntropy) {
        gradient += from.entropy_gradient[p] * (from.entropy[p] - std::log(sum));
        slope = static_cast<W>(-from.entropy_gradient[p] * positions.inverse / sum);
      }
      base = static_cast<W>(from.normalizer[2 * p]);
      constant = static_cast<W>(-gradient * positions.inverse / sum);
      label = positions.labels[p];
    }
    const auto value = [&](T logit) {
      const W x = widen(logit) * inverse - base, weight = exponential(x);
      return kEntropy ? weight * (constant + slope * (weight == 0 ? 0 : x)) : weight * constant;
    };
    const auto write_one = [&](int64_t k) { narrow(counts ? value(row[k]) : 0, out[k]); };

    const Split<T> split(out, n);
    for (int64_t k = threadIdx.x; k < split.head; k += kLogprobThreads) write_one(k);
    const T* body = row + split.head;
    for (int64_t v = threadIdx.x; v < split.vectors; v += kLogprobThreads) {
      Vector<T> logits{}, results;
      if (counts && is_aligned(body))
        logits = reinterpret_cast<const Vector<T>*>(body)[v];
      else if (counts)
        for (int i = 0; i < kSize; ++i) logits.value[i] = body[v * kSize + i];
      for (int i = 0; i < kSize; ++i) narrow(counts ? value(logits.value[i]) : 0, results.value[i]);
      reinterpret_cast<Vector<T>*>(out + split.head)[v] = results;
    }
    for (int64_t k = split.tail() + threadIdx.x; k < n; k += kLogprobThreads) write_one(k);

    // The label's place is written again: to look for it at every place would take a quarter of all
    // instructions.
    if (label < 0 || label >= n) continue;
    __syncthreads();
    if (threadIdx.x == 0) narrow(at_label + value(row[label]), out[label]);
  }
}

template <class T>
void launch_token_statistics(const Positions<T>& positions, const TokenResults<Wide<T>>& results,
                             cudaStream_t stream) {
  if (positions.sequences == 0) return;
  if (positions.length > 0) {
    const auto kernel = results.entropy ? position_statistics<true, T> : position_statistics<false, T>;
    SHFCAS_LAUNCH(kernel, grid_for(positions.count()), kLogprobThreads, 0, stream)(positions, results);
  }
  const auto sum = sum_positions<Wide<T>>;
  SHFCAS_LAUNCH(sum, grid_for(positions.sequences), kLogprobThreads, 0, stream)
  (results.exact, positions.sequences, positions.length, results.sums);
}

template <class T>
void launch_token_gradients(const Positions<T>& positions, const TokenGradients& from, T* result,
                            cudaStream_t stream) {
  if (positions.count() == 0 || positions.vocabulary == 0) return;
  const auto kernel = from.entropy_gradient ? position_gradients<true, T> : position_gradients<false, T>;
  SHFCAS_LAUNCH(kernel, grid_for(positions.count()), kLogprobThreads, 0, stream)(positions, from, result);
}

}  // namespace shfcas
