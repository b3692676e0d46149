// Which instructions this processor has, and code that uses them.
#pragma once

#define SHFCAS_INLINE_LAMBDA __attribute__((always_inline))

namespace shfcas {

enum class SimdLevel { baseline, avx2, avx512 };

// The best of this processor, or what the environment variable SHFCAS_SIMD asks for if that is less.
SimdLevel simd_level();
const char* simd_level_name();

// What each level has on x86-64. Kernels that are written in vector registers are compiled apart, in
// level_*.cpp.
#define SHFCAS_AVX2 "avx2,fma,bmi,bmi2,lzcnt,popcnt"
#define SHFCAS_AVX512 \
  SHFCAS_AVX2 ",avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vpopcntdq,prefer-vector-width=512"

#ifdef __x86_64__
template <class F>
__attribute__((target(SHFCAS_AVX2))) void run_avx2(const F& f) {
  f();
}
template <class F>
__attribute__((target(SHFCAS_AVX512))) void run_avx512(const F& f) {
  f();
}
#endif

// Runs f compiled for the instructions of this processor, in which the compiler vectorises its loops.
//
//   vectorize([&]() SHFCAS_INLINE_LAMBDA { ... });
//
// The lambda and all it calls must be inlined (SHFCAS_INLINE), for the instruction set is a property of the
// function that they end up in.
template <class F>
void vectorize(const F& f) {
#ifdef __x86_64__
  switch (simd_level()) {
    case SimdLevel::avx512:
      return run_avx512(f);
    case SimdLevel::avx2:
      return run_avx2(f);
    case SimdLevel::baseline:
      break;
  }
#endif
  f();
}

}  // namespace shfcas
