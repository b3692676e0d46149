// Kernels for x86-64 with AVX2, FMA and BMI2 (processors since 2013).
#ifdef __x86_64__
#include "cpu/level_includes.h"

#define SHFCAS_LEVEL avx2
#define SHFCAS_REGISTER_BYTES 32
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,lzcnt,popcnt")
#include "cpu/level/table.h"
#pragma GCC pop_options
#endif
