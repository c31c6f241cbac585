// SPDX-License-Identifier: MIT
#include "dispatch.h"

#include <cstring>

namespace tokenspeed::cpu {

#if defined(TS_X86)
namespace avx512 { Kernels table(); }
namespace avx2 { Kernels table(); }
#endif
namespace portable { Kernels table(); }

namespace {

struct Choices {
  Kernels kernels[3] = {};
  const char* names[4] = {};
  int count = 0;
  int chosen = 0;

  void add(const Kernels& table) {
    kernels[count] = table;
    names[count++] = table.isa;
  }

  Choices() {
#if defined(TS_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16"))
      add(avx512::table());
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) add(avx2::table());
#endif
    add(portable::table());
  }
};

Choices& choices() {  // what the processor is does not change; which set is active does, in tests only
  static Choices instance;
  return instance;
}

}  // namespace

const Kernels& active() { return choices().kernels[choices().chosen]; }
const char* const* available_isas() { return choices().names; }

bool set_isa(const char* name) {
  Choices& all = choices();
  for (int i = 0; i < all.count; ++i) {
    if (std::strcmp(all.names[i], name) == 0) {
      all.chosen = i;
      return true;
    }
  }
  return false;
}

}  // namespace tokenspeed::cpu
