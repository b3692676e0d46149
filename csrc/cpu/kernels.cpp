// Selection of the kernels for this processor, when the library is loaded.
#include "cpu/kernels.h"

#include <cstdlib>
#include <cstring>

#include "cpu/simd.h"

namespace shfcas {

// Each table is defined in its level_*.cpp.
#define SHFCAS_DECLARE_LEVEL(level) \
  namespace level {                 \
  template <class T>                \
  Kernels<T> table();               \
  PairBitKernels pair_bit_table();  \
  }
SHFCAS_DECLARE_LEVEL(baseline)
#ifdef __x86_64__
SHFCAS_DECLARE_LEVEL(avx2)
SHFCAS_DECLARE_LEVEL(avx512)
#endif

namespace {

const char* const kNames[] = {"baseline", "avx2", "avx512"};

SimdLevel best_level() {
#ifdef __x86_64__
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi") ||
      !__builtin_cpu_supports("bmi2") || !__builtin_cpu_supports("lzcnt") ||
      !__builtin_cpu_supports("popcnt"))
    return SimdLevel::baseline;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512cd") || !__builtin_cpu_supports("avx512vpopcntdq"))
    return SimdLevel::avx2;
  return SimdLevel::avx512;
#else
  return SimdLevel::baseline;
#endif
}

SimdLevel choose_level() {
  const SimdLevel best = best_level();
  const char* wanted = std::getenv("SHFCAS_SIMD");
  for (int level = 0; wanted && level < static_cast<int>(best); ++level)
    if (!std::strcmp(wanted, kNames[level])) return static_cast<SimdLevel>(level);
  return best;
}

const SimdLevel level = choose_level();

}  // namespace

SimdLevel simd_level() { return level; }
const char* simd_level_name() { return kNames[static_cast<int>(level)]; }

template <class T>
const Kernels<T>& kernels() {
  static const Kernels<T> chosen = [] {
#ifdef __x86_64__
    if (level == SimdLevel::avx512) return avx512::table<T>();
    if (level == SimdLevel::avx2) return avx2::table<T>();
#endif
    return baseline::table<T>();
  }();
  return chosen;
}

template const Kernels<float>& kernels();
template const Kernels<double>& kernels();
template const Kernels<int32_t>& kernels();
template const Kernels<int64_t>& kernels();

const PairBitKernels& pair_bit_kernels() {
  static const PairBitKernels chosen = [] {
#ifdef __x86_64__
    if (level == SimdLevel::avx512) return avx512::pair_bit_table();
    if (level == SimdLevel::avx2) return avx2::pair_bit_table();
#endif
    return baseline::pair_bit_table();
  }();
  return chosen;
}

}  // namespace shfcas
