// A team is the set of threads that share one row. Row functions take it as their first argument and read
// elements rank(), rank() + size(), ...; sum() returns the total over the team to every member.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace shfcas {

struct SerialTeam {
  static constexpr SHFCAS_HD int64_t rank() { return 0; }
  static constexpr SHFCAS_HD int64_t size() { return 1; }
  template <class V>
  SHFCAS_INLINE V sum(V value) const {
    return value;
  }
};

}  // namespace shfcas
