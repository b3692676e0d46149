// Kernels for any processor: SSE2 on x86-64, NEON on ARM.
#include "cpu/level_includes.h"

#define SHFCAS_LEVEL baseline
#define SHFCAS_REGISTER_BYTES 16
#include "cpu/level/table.h"
