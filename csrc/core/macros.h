// Marks of the torch-free headers: they compile alone with a host compiler and with nvcc.
#pragma once

#ifdef __CUDACC__
#define SHFCAS_HD __host__ __device__
#else
#define SHFCAS_HD
#endif

// Inlined into the function that chose the instruction set, or it would keep the baseline one.
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
