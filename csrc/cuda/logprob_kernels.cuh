// Log-probabilities of label sequences, and their gradient. A block per position (b, t) reads its v logits
// once, 16 bytes per thread and load. It keeps a running maximum and a running sum of exponentials. The sum
// over t is in double; its order depends only on the number of positions.
//
//   logits  (b, t, v), any strides of b and t, stride 1 of v
//   labels  (b, t)
//   mask    (b, t), or null if every position counts; masked positions are not read
// A counted label outside [0, v) makes its sequence NaN.
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

template <class T>
struct Positions {
  const T* logits;
  const int64_t* labels;
  const bool* mask;
  int64_t sequences, length, vocabulary;
  int64_t sequence_stride, position_stride;

  SHFCAS_INLINE int64_t count() const { return sequences * length; }
  SHFCAS_INLINE bool counts(int64_t position) const { return !mask || mask[position]; }
  SHFCAS_INLINE bool has_label(int64_t position) const {
    return labels[position] >= 0 && labels[position] < vocabulary;
  }
  SHFCAS_INLINE const T* row(int64_t position) const {
    return logits + position / length * sequence_stride + position % length * position_stride;
  }
};

// Log-sum-exp of the values added so far, as maximum and sum of exp(value - maximum).
template <class W>
struct RunningSum {
  W maximum = -INFINITY, sum = 0;

  // Makes exp(-inf - -inf) 0.
  static __device__ W finite(W maximum) { return maximum == -static_cast<W>(INFINITY) ? 0 : maximum; }

  template <int kSize>
  __device__ void add(const W (&values)[kSize]) {
    W highest = maximum;
    for (int i = 0; i < kSize; ++i) highest = greater(highest, values[i]);  // ignores NaN
    const W base = finite(highest);
    sum *= std::exp(maximum - base);
    for (int i = 0; i < kSize; ++i) sum += std::exp(values[i] - base);  // propagates NaN
    maximum = highest;
  }

  // Returns the total over the team.
  template <class Team>
  __device__ RunningSum total(const Team& team) const {
    RunningSum all;
    all.maximum = team.reduce(maximum, [](W a, W b) { return greater(a, b); });
    all.sum = team.sum(sum * std::exp(maximum - finite(all.maximum)));
    return all;
  }

  __device__ W log_probability(W value) const { return value - maximum - std::log(sum); }
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

template <class T>
__device__ RunningSum<Wide<T>> sum_row(const T* row, int64_t n) {
  using W = Wide<T>;
  constexpr int kSize = Vector<T>::kSize;
  const Split<T> split(row, n);
  RunningSum<W> running;
  const auto add_one = [&](int64_t k) {
    const W value[1] = {widen(row[k])};
    running.add(value);
  };
  for (int64_t k = threadIdx.x; k < split.head; k += kLogprobThreads) add_one(k);
  const auto* vectors = reinterpret_cast<const Vector<T>*>(row + split.head);
  for (int64_t k = threadIdx.x; k < split.vectors; k += kLogprobThreads) {
    const Vector<T> vector = vectors[k];
    W values[kSize];
    for (int i = 0; i < kSize; ++i) values[i] = widen(vector.value[i]);
    running.add(values);
  }
  for (int64_t k = split.tail() + threadIdx.x; k < n; k += kLogprobThreads) add_one(k);
  return running.total(LogprobTeam{});
}

template <class T>
__global__ void __launch_bounds__(kLogprobThreads) position_logprobs(Positions<T> positions, double* result) {
  for (int64_t p = blockIdx.x; p < positions.count(); p += gridDim.x) {
    if (!positions.counts(p)) {
      if (threadIdx.x == 0) result[p] = 0;
      continue;
    }
    const bool valid = positions.has_label(p);
    const T* row = positions.row(p);
    const auto all = sum_row(row, positions.vocabulary);
    if (threadIdx.x == 0) result[p] = valid ? all.log_probability(widen(row[positions.labels[p]])) : NAN;
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

// Writes row p of result, contiguous: gradient_b (onehot(label) - softmax).
template <class T>
__global__ void __launch_bounds__(kLogprobThreads, 3)
    position_gradients(Positions<T> positions, const Wide<T>* gradient, T* result) {
  using W = Wide<T>;
  constexpr int kSize = Vector<T>::kSize;
  for (int64_t p = blockIdx.x; p < positions.count(); p += gridDim.x) {
    const int64_t n = positions.vocabulary;
    const bool counts = positions.counts(p);
    const T* row = positions.row(p);
    T* out = result + p * n;

    W weight = 0, base = 0, per_sum = 0;
    int64_t label = 0;
    if (counts) {
      const RunningSum<W> all = sum_row(row, n);
      base = RunningSum<W>::finite(all.maximum);
      per_sum = 1 / all.sum;
      label = positions.labels[p];
      weight = positions.has_label(p) ? gradient[p / positions.length] : static_cast<W>(NAN);
    }
    const auto write = [&](int64_t k, T logit, T& to) {
      narrow(weight * ((k == label ? W{1} : W{0}) - std::exp(widen(logit) - base) * per_sum), to);
    };
    const auto write_one = [&](int64_t k) { counts ? write(k, row[k], out[k]) : narrow(W{0}, out[k]); };

    const Split<T> split(out, n);
    for (int64_t k = threadIdx.x; k < split.head; k += kLogprobThreads) write_one(k);
    const T* body = row + split.head;
    for (int64_t v = threadIdx.x; v < split.vectors; v += kLogprobThreads) {
      Vector<T> logits{}, results;
      if (counts && is_aligned(body))
        logits = reinterpret_cast<const Vector<T>*>(body)[v];
      else if (counts)
        for (int i = 0; i < kSize; ++i) logits.value[i] = body[v * kSize + i];
      for (int i = 0; i < kSize; ++i) {
        if (counts)
          write(split.head + v * kSize + i, logits.value[i], results.value[i]);
        else
          narrow(W{0}, results.value[i]);
      }
      reinterpret_cast<Vector<T>*>(out + split.head)[v] = results;
    }
    for (int64_t k = split.tail() + threadIdx.x; k < n; k += kLogprobThreads) write_one(k);
  }
}

// logprobs: scratch memory, one number per position.
template <class T>
void launch_sequence_logprobs(const Positions<T>& positions, double* logprobs, Wide<T>* result,
                              cudaStream_t stream) {
  if (positions.sequences == 0) return;
  if (positions.length > 0) {
    const auto kernel = position_logprobs<T>;
    SHFCAS_LAUNCH(kernel, grid_for(positions.count()), kLogprobThreads, 0, stream)(positions, logprobs);
  }
  const auto sum = sum_positions<Wide<T>>;
  SHFCAS_LAUNCH(sum, grid_for(positions.sequences), kLogprobThreads, 0, stream)
  (logprobs, positions.sequences, positions.length, result);
}

template <class T>
void launch_sequence_logprobs_gradient(const Positions<T>& positions, const Wide<T>* gradient, T* result,
                                       cudaStream_t stream) {
  if (positions.count() == 0 || positions.vocabulary == 0) return;
  const auto kernel = position_gradients<T>;
  SHFCAS_LAUNCH(kernel, grid_for(positions.count()), kLogprobThreads, 0, stream)(positions, gradient, result);
}

}  // namespace shfcas
