// SPDX-License-Identifier: MIT
// Row-wise work that never leaves a row: norms, SiLU gate, embedding lookup. Memory-bound; few tokens run on the caller alone.
#include "operations.h"

namespace tokenspeed::cpu::TS_ISA {
namespace {

constexpr i64 alone_elements = 32 * 1024;  // below this, waking a worker costs more than it saves

template <class Body>
void for_rows(i64 tokens, i64 width, Body&& body) {
  if (tokens * width <= alone_elements) {
    for (i64 t = 0; t < tokens; ++t) body(t);
    return;
  }
  const i64 chunk = width >= 8192 ? 1 : 8192 / width;
  for_each((tokens + chunk - 1) / chunk, [&](i64 task, int) {
    for (i64 t = task * chunk; t < tokens && t < (task + 1) * chunk; ++t) body(t);
  });
}

template <class E>
void norm_of(const Norm& p) {
  for_rows(p.tokens, p.width, [&](i64 t) {
    const E* x = static_cast<const E*>(p.x) + t * p.x_stride;
    E* residual = p.residual == nullptr ? nullptr : static_cast<E*>(p.residual) + t * p.width;
    const E* weight = static_cast<const E*>(p.weight);
    E* y = static_cast<E*>(p.y) + t * p.width;
    vf squares = zero();
    for (i64 i = 0; i < p.width; i += lanes) {
      vf value = load(x + i, p.width - i);
      if (residual != nullptr) value = value + load(residual + i, p.width - i);
      squares = fma(value, value, squares);
    }
    const vf inverse = splat(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(p.width) + p.eps));
    for (i64 i = 0; i < p.width; i += lanes) {
      vf value = load(x + i, p.width - i);
      if (residual != nullptr) {  // the norm sees the sum before it is rounded for storage
        value = value + load(residual + i, p.width - i);
        store(residual + i, value, p.width - i);
      }
      store(y + i, value * inverse * load(weight + i, p.width - i), p.width - i);
    }
  });
}

template <class E>
void silu_mul_of(const SiluMul& p) {
  for_rows(p.tokens, p.width, [&](i64 t) {
    const E* gate = static_cast<const E*>(p.x) + t * p.x_stride;
    const E* up = gate + p.width;
    E* y = static_cast<E*>(p.y) + t * p.width;
    for (i64 i = 0; i < p.width; i += lanes)
      store(y + i, silu(load(gate + i, p.width - i)) * load(up + i, p.width - i), p.width - i);
  });
}

template <class E>
void embedding_of(const Embedding& p) {
  for_rows(p.tokens, p.width, [&](i64 t) {
    E* to = static_cast<E*>(p.y) + t * p.width;
    const std::size_t bytes = static_cast<std::size_t>(p.width) * sizeof(E);
    if (p.ids[t] < 0 || p.ids[t] >= p.vocabulary) std::memset(to, 0, bytes);
    else std::memcpy(to, static_cast<const E*>(p.table) + p.ids[t] * p.width, bytes);
  });
}

}  // namespace

void stream(const Stream& p) {
  constexpr i64 chunk = 128 * 1024 / 4;  // words a task
  constexpr i64 ahead = 2048 / 4;
  const i64 words = p.bytes / 4;
  for_each((words + chunk - 1) / chunk, [&](i64 task, int) {
    vf total[4] = {zero(), zero(), zero(), zero()};
    const float* from = static_cast<const float*>(p.data) + task * chunk;
    const i64 count = words - task * chunk < chunk ? words - task * chunk : chunk;
    const i64 quarter = count / 4 / lanes * lanes;
    for (i64 i = 0; i < quarter; i += lanes) {
      TS_UNROLL for (int s = 0; s < 4; ++s) {
        prefetch(from + s * quarter + i + ahead);
        total[s] = max(total[s], load(from + s * quarter + i));
      }
    }
    asm volatile("" : : "r"(&total) : "memory");
  });
}

void norm(const Norm& p) { p.dtype == Dtype::f32 ? norm_of<float>(p) : norm_of<bf16>(p); }
void silu_mul(const SiluMul& p) { p.dtype == Dtype::f32 ? silu_mul_of<float>(p) : silu_mul_of<bf16>(p); }
void embedding(const Embedding& p) { p.dtype == Dtype::f32 ? embedding_of<float>(p) : embedding_of<bf16>(p); }

}  // namespace tokenspeed::cpu::TS_ISA
