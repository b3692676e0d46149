// Every launch function of csrc/cuda as a C function over raw pointers, for ctypes. g++ compiles it against
// the emulated GPU, nvcc for a real one: then every kernel is compiled, and nothing of torch.
//
// Functions return "" or what the emulated GPU has to say. dtypes are those of the test module's list.
#include "cuda/kendall_kernels.cuh"
#include "cuda/logprob_kernels.cuh"
#include "cuda/matrix_kernels.cuh"
#include "cuda/pacs_kernels.cuh"

using namespace shfcas;

namespace {

template <class F>
const char* told(const F& f) {
#ifdef __CUDACC__
  f();
  return "";
#else
  static std::string message;
  try {
    f();
    return "";
  } catch (const std::logic_error& error) {
    message = error.what();
    return message.c_str();
  }
#endif
}

enum Dtype { kDouble, kFloat, kLong, kInt, kHalf, kBFloat16 };

template <class F>
const char* for_floating(int dtype, const F& f) {
  return told([&] { dtype == kDouble ? f(double{}) : f(float{}); });
}

template <class F>
const char* for_any(int dtype, const F& f) {
  if (dtype == kLong) return told([&] { f(int64_t{}); });
  if (dtype == kInt) return told([&] { f(int32_t{}); });
  return for_floating(dtype, f);
}

template <class F>
const char* for_logits(int dtype, const F& f) {
  if (dtype == kHalf) return told([&] { f(__half{}); });
  if (dtype == kBFloat16) return told([&] { f(__nv_bfloat16{}); });
  return for_floating(dtype, f);
}

const cudaStream_t stream{};

}  // namespace

extern "C" {

#ifndef __CUDACC__
void seed(unsigned seed) { emulation::gpu().seed(seed); }

// Reverses 256 values in shared memory, with the barrier that this takes or without.
const char* reverse(int64_t* values, bool with_barrier) {
  return told([&] {
    emulation::gpu().run(1, 256, [&] {
      SHFCAS_SHARED(int64_t, shared, 256);
      shared[threadIdx.x] = values[threadIdx.x];
      if (with_barrier) __syncthreads();
      values[threadIdx.x] = shared[255 - threadIdx.x];
    });
  });
}

// The same within half a warp.
const char* rotate(int64_t* values, bool with_barrier) {
  return told([&] {
    emulation::gpu().run(1, 32, [&] {
      SHFCAS_SHARED(int64_t, shared, 32);
      const SubWarpTeam team;
      shared[threadIdx.x] = values[threadIdx.x];
      if (with_barrier) team.sync();
      values[threadIdx.x] = shared[threadIdx.x / 16 * 16 + (threadIdx.x + 1) % 16];
    });
  });
}

// What must be refused: a barrier that some threads miss, a warp instruction that some lanes miss, a write
// past shared memory.
const char* misbehave(int how) {
  return told([&] {
    emulation::gpu().run(1, 64, [&] {
      SHFCAS_SHARED(int, shared, 64);
      if (how == 0 && threadIdx.x < 32) __syncthreads();
      if (how == 1 && threadIdx.x % 32 < 9) __syncwarp(0xffffffffu);
      if (how == 2) shared[threadIdx.x + 1] = 1;
    });
  });
}
#endif

int64_t kendall_scratch(int dtype, const Rows* rows) {
  int64_t bytes = 0;
  for_any(dtype, [&](auto number) { bytes = kendall_scratch_bytes<decltype(number)>(*rows); });
  return bytes;
}

const char* kendall(int dtype, const Rows* rows, const void* x, const void* y, void* scratch,
                    const KendallOutput* output) {
  return for_any(dtype, [&](auto number) {
    using T = decltype(number);
    launch_kendall(*rows, static_cast<const T*>(x), static_cast<const T*>(y), scratch, stream, *output);
  });
}

const char* pacs(int dtype, const Rows* rows, const void* rewards, const void* logprobs, void* scores) {
  return for_floating(dtype, [&](auto number) {
    using T = decltype(number);
    launch_pacs(*rows, static_cast<const T*>(rewards), static_cast<const T*>(logprobs),
                static_cast<T*>(scores), stream);
  });
}

const char* pacs_gradient(int dtype, const Rows* rows, const void* gradient, const void* rewards,
                          const void* logprobs, void* to_rewards, void* to_logprobs) {
  return for_floating(dtype, [&](auto number) {
    using T = decltype(number);
    launch_pacs_gradient(*rows, static_cast<const T*>(gradient), static_cast<const T*>(rewards),
                         static_cast<const T*>(logprobs), static_cast<T*>(to_rewards),
                         static_cast<T*>(to_logprobs), stream);
  });
}

const char* conflict_scores(int dtype, const Rows* rows, const void* rewards, const void* logprobs,
                            void* scores, void* mean_abs, bool* degenerate, double* distance, double* tau_b,
                            void* scratch) {
  return for_floating(dtype, [&](auto number) {
    using T = decltype(number);
    launch_conflict_scores(*rows, static_cast<const T*>(rewards), static_cast<const T*>(logprobs),
                           static_cast<T*>(scores), static_cast<T*>(mean_abs), degenerate, distance, tau_b,
                           scratch, stream);
  });
}

int64_t matrix_scratch(int dtype, int64_t m, int64_t n) {
  int64_t bytes = 0;
  for_any(dtype, [&](auto number) { bytes = matrix_scratch_bytes<decltype(number)>(m, n); });
  return bytes;
}

// variant: of tau, or -1 for the distance.
const char* matrix(int dtype, const void* x, int64_t m, int64_t n, int variant, double* result,
                   void* scratch) {
  const MatrixStatistic statistic{variant < 0,
                                  variant < 0 ? TauVariant::b : static_cast<TauVariant>(variant)};
  return for_any(dtype, [&](auto number) {
    using T = decltype(number);
    launch_matrix(static_cast<const T*>(x), m, n, statistic, result, scratch, stream);
  });
}

}  // extern "C"

template <class T>
Positions<T> positions_of(const void* logits, const int64_t* labels, const bool* mask, const int64_t* sizes,
                          const int64_t* strides, double temperature) {
  return {static_cast<const T*>(logits),
          labels,
          mask,
          sizes[0],
          sizes[1],
          sizes[2],
          strides[0],
          strides[1],
          1 / temperature};
}

extern "C" {

const char* token_statistics(int dtype, const void* logits, const int64_t* labels, const bool* mask,
                             const int64_t* sizes, const int64_t* strides, const double* temperature,
                             double* exact, void* sums, void* logprobs, void* entropy, double* normalizer) {
  return for_logits(dtype, [&](auto number) {
    using T = decltype(number);
    using W = Wide<T>;
    const TokenResults<W> results{exact, static_cast<W*>(sums), static_cast<W*>(logprobs),
                                  static_cast<W*>(entropy), normalizer};
    launch_token_statistics(positions_of<T>(logits, labels, mask, sizes, strides, *temperature), results,
                            stream);
  });
}

const char* token_gradients(int dtype, const double* gradient, const double* entropy_gradient,
                            const void* logits, const int64_t* labels, const bool* mask, const int64_t* sizes,
                            const int64_t* strides, const double* temperature, const double* entropy,
                            const double* normalizer, void* result) {
  return for_logits(dtype, [&](auto number) {
    using T = decltype(number);
    const TokenGradients from{gradient, entropy_gradient, entropy, normalizer};
    launch_token_gradients(positions_of<T>(logits, labels, mask, sizes, strides, *temperature), from,
                           static_cast<T*>(result), stream);
  });
}

}  // extern "C"
