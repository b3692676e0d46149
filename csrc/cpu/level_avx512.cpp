// Kernels for x86-64 with AVX-512 and its population counts (processors since 2019).
#ifdef __x86_64__
#include "cpu/level_includes.h"

#define SHFCAS_LEVEL avx512
#define SHFCAS_REGISTER_BYTES 64
#pragma GCC push_options
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vpopcntdq,avx2,fma,bmi,bmi2,lzcnt,popcnt,prefer-vector-width=512")
#include "cpu/level/table.h"
#pragma GCC pop_options
#endif
