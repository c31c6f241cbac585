// SPDX-License-Identifier: MIT
// The kernels of the best instruction set this processor has, or of one asked for by name.
#pragma once

#include "kernels.h"

namespace tokenspeed::cpu {

const Kernels& active();
bool set_isa(const char* name);  // false: unknown, or this processor lacks it; nothing changes then
const char* const* available_isas();  // best first, null-terminated

}  // namespace tokenspeed::cpu
