// Parser of the `variant` argument of the tau ops.
#pragma once

#include <string>

#include "checks.h"
#include "core/pair_counts.h"

namespace shfcas {

inline TauVariant parse_tau_variant(const char* op, const std::string& name) {
  if (name == "a") return TauVariant::a;
  if (name == "b") return TauVariant::b;
  if (name == "c") return TauVariant::c;
  fail(op, "variant", "'a', 'b' or 'c'", "'" + name + "'");
}

}  // namespace shfcas
