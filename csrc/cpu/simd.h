// Runs a piece of code compiled for the widest SIMD registers of this processor.
//
//   vectorize([&](auto width) SHFCAS_INLINE_LAMBDA { ... width.bytes ... });
//
// The lambda and all it calls must be inlined (SHFCAS_INLINE), for the instruction set is a property of the
// function that they end up in.
#pragma once

#define SHFCAS_INLINE_LAMBDA __attribute__((always_inline))

namespace shfcas {

template <int Bytes>
struct Width {
  static constexpr int bytes = Bytes;
};

// A register of lanes; arithmetic and comparisons work lane by lane, and "true" is all ones. A pointer to
// lanes may be read as one to registers.
template <class Lane, int Bytes>
struct RegisterOf {
  typedef Lane type __attribute__((vector_size(Bytes), may_alias));
};
template <class Lane, int Bytes>
using Register = typename RegisterOf<Lane, Bytes>::type;

#ifdef __x86_64__

template <class F>
__attribute__((target("avx2,fma,bmi2"))) void run_avx2(const F& f) {
  f(Width<32>{});
}

inline bool has_avx2() {
  static const bool yes = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  }();
  return yes;
}

// No AVX-512: its comparisons go through mask registers, which made pair counting slower than with AVX2.
template <class F>
void vectorize(const F& f) {
  has_avx2() ? run_avx2(f) : f(Width<16>{});
}

#else  // the baseline of other processors has what we use (NEON on ARM)

template <class F>
void vectorize(const F& f) {
  f(Width<16>{});
}

#endif

}  // namespace shfcas
