// Chooses the kernels when the library is loaded.
#include "cpu/kernels.h"

#include <cstdlib>
#include <cstring>

namespace shfcas {

// Each is filled by its level_*.cpp.
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

enum class Level { baseline, avx2, avx512 };
const char* const kNames[] = {"baseline", "avx2", "avx512"};

Level best_level() {
#ifdef __x86_64__
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2"))
    return Level::baseline;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512cd") || !__builtin_cpu_supports("avx512vpopcntdq"))
    return Level::avx2;
  return Level::avx512;
#else
  return Level::baseline;
#endif
}

// The best, unless SHFCAS_SIMD names a lesser one.
Level choose_level() {
  const Level best = best_level();
  const char* wanted = std::getenv("SHFCAS_SIMD");
  for (int level = 0; wanted && level < static_cast<int>(best); ++level)
    if (!std::strcmp(wanted, kNames[level])) return static_cast<Level>(level);
  return best;
}

const Level level = choose_level();

}  // namespace

template <class T>
const Kernels<T>& kernels() {
  static const Kernels<T> chosen = [] {
#ifdef __x86_64__
    if (level == Level::avx512) return avx512::table<T>();
    if (level == Level::avx2) return avx2::table<T>();
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
    if (level == Level::avx512) return avx512::pair_bit_table();
    if (level == Level::avx2) return avx2::pair_bit_table();
#endif
    return baseline::pair_bit_table();
  }();
  return chosen;
}

const char* simd_level() { return kNames[static_cast<int>(level)]; }

}  // namespace shfcas
