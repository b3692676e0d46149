// SIMD level of this processor, and dispatch of code to that level.
#pragma once

#define SHFCAS_INLINE_LAMBDA __attribute__((always_inline))

namespace shfcas {

enum class SimdLevel { baseline, avx2, avx512 };

// Returns the best level of this processor, or a lower one set in the environment variable SHFCAS_SIMD.
SimdLevel simd_level();
const char* simd_level_name();

// Instruction sets of each level on x86-64. Kernels written with vector registers are compiled separately, in
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

// Runs f compiled for the SIMD level of this processor, so that the compiler vectorises its loops.
//
//   vectorize([&]() SHFCAS_INLINE_LAMBDA { ... });
//
// The lambda and everything that it calls must be inlined (SHFCAS_INLINE): the instruction set is a property
// of the enclosing function.
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
