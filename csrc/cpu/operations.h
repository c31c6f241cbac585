// SPDX-License-Identifier: MIT
// What each instruction set defines, in its own namespace.
#pragma once

#include "dot.h"
#include "kernels.h"

namespace tokenspeed::cpu::TS_ISA {

std::int64_t packed_bytes(const Pack& p);
void pack(const Pack& p);
void linear(const Linear& p);
void norm(const Norm& p);
void silu_mul(const SiluMul& p);
void embedding(const Embedding& p);
void rope_gqa(const RopeGqa& p);
void rope_mla(const RopeMla& p);
void gqa(const GqaAttention& p);
void mla_decode(const MlaDecode& p);
void mla_extend(const MlaExtend& p);
void route(const Route& p);
void experts(const Experts& p);
void stream(const Stream& p);
Kernels table();

}  // namespace tokenspeed::cpu::TS_ISA
