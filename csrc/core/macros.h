// Macros of the torch-free headers, which compile alone with a host compiler and with nvcc.
#pragma once

#ifdef __CUDACC__
#define SHFCAS_HD __host__ __device__
#else
#define SHFCAS_HD
#endif

// Forces inlining into the caller that selects the instruction set; a separate function would use the
// baseline.
#ifdef __CUDACC__
#define SHFCAS_INLINE inline __host__ __device__
#else
#define SHFCAS_INLINE inline __attribute__((always_inline))
#endif

// Lets the host compiler split a floating-point sum over SIMD lanes.
#ifdef __CUDACC__
#define SHFCAS_SIMD_SUM(...)
#else
#define SHFCAS_PRAGMA(text) _Pragma(#text)
#define SHFCAS_SIMD_SUM(...) SHFCAS_PRAGMA(omp simd reduction(+ : __VA_ARGS__))
#endif
