// The kernels for any processor: what every x86-64 has (SSE2), NEON on ARM.
#include "cpu/level_includes.h"

#define SHFCAS_LEVEL baseline
#define SHFCAS_REGISTER_BYTES 16
#include "cpu/level/table.h"
