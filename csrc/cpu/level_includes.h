// Headers that the kernels include from outside csrc/cpu/level/. They are included before an instruction set
// is selected: otherwise the linker could pick an AVX-512 copy of a standard library function for all code.
#pragma once

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/keys.h"
#include "core/macros.h"
#include "core/pacs.h"
#include "core/pair_counts.h"
#include "core/rows.h"
#include "core/team.h"
#include "cpu/aligned_buffer.h"
#include "cpu/block_statistics.h"
#include "cpu/kernels.h"
