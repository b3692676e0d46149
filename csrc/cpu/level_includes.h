// What the kernels include from outside of csrc/cpu/level/, read before an instruction set is chosen: a
// function of the standard library compiled for AVX-512 must not become everybody's.
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
#include "cpu/kernels.h"
