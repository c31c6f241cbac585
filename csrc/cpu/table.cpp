// SPDX-License-Identifier: MIT
#include "operations.h"

namespace tokenspeed::cpu::TS_ISA {

Kernels table() {
  return {
#if defined(TS_AVX512)
      .isa = "avx512bf16",
#elif defined(TS_AVX2)
      .isa = "avx2",
#else
      .isa = "portable",
#endif
      .packed_bytes = packed_bytes,
      .pack = pack,
      .linear = linear,
      .norm = norm,
      .silu_mul = silu_mul,
      .embedding = embedding,
      .rope_gqa = rope_gqa,
      .rope_mla = rope_mla,
      .gqa = gqa,
      .mla_decode = mla_decode,
      .mla_extend = mla_extend,
      .route = route,
      .experts = experts,
      .stream = stream,
  };
}

}  // namespace tokenspeed::cpu::TS_ISA
