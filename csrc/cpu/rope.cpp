// SPDX-License-Identifier: MIT
// Rotary embedding with the norm before it and the write into the KV arena after it, one pass over a token.
#include "operations.h"

namespace tokenspeed::cpu::TS_ISA {
namespace {

constexpr i64 head_dim_max = 1024;
constexpr i64 alone_elements = 16 * 1024;

template <class Body>
void for_tokens(i64 tokens, i64 elements, Body&& body) {
  if (tokens * elements <= alone_elements) {
    for (i64 t = 0; t < tokens; ++t) body(t);
  } else {
    for_each(tokens, [&](i64 t, int) { body(t); });
  }
}

// values[0, width) = x / rms(x) * weight, or x when there is no weight.
template <class E>
void widen_normed(const E* x, i64 width, const E* weight, float eps, float* values) {
  vf squares = zero();
  for (i64 i = 0; i < width; i += lanes) {
    const vf value = load(x + i, width - i);
    squares = fma(value, value, squares);
    store(values + i, value);
  }
  if (weight == nullptr) return;
  const vf inverse = splat(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(width) + eps));
  for (i64 i = 0; i < width; i += lanes) store(values + i, load(values + i) * inverse * load(weight + i, width - i));
}

// Rotates the first `rotary` values in place; pairs are (i, i + rotary / 2), or (2 i, 2 i + 1) when interleaved.
void rotate(float* values, const float* cos_sin, i64 rotary, bool interleaved) {
  const i64 half = rotary / 2;
  if (!interleaved && half % lanes == 0) {
    for (i64 i = 0; i < half; i += lanes) {
      const vf a = load(values + i), b = load(values + half + i);
      const vf c = load(cos_sin + i), s = load(cos_sin + half + i);
      store(values + i, a * c - b * s);
      store(values + half + i, b * c + a * s);
    }
    return;
  }
  for (i64 i = 0; i < half; ++i) {
    float& a = values[interleaved ? 2 * i : i];
    float& b = values[interleaved ? 2 * i + 1 : half + i];
    const float first = a * cos_sin[i] - b * cos_sin[half + i];
    b = b * cos_sin[i] + a * cos_sin[half + i];
    a = first;
  }
}

template <class E>
void narrow(const float* values, i64 width, E* to) {
  for (i64 i = 0; i < width; i += lanes) store(to + i, load(values + i), width - i);
}

template <class E>
void rope_gqa_of(const RopeGqa& p) {
  for_tokens(p.tokens, (p.heads + 2 * p.kv_heads) * p.head_dim, [&](i64 t) {
    alignas(64) float values[head_dim_max];
    const float* cos_sin = p.cos_sin + p.positions[t] * p.rotary;
    auto turn = [&](const void* from, i64 stride, i64 head, const void* norm, E* to) {
      widen_normed(static_cast<const E*>(from) + t * stride + head * p.head_dim, p.head_dim, static_cast<const E*>(norm),
                   p.eps, values);
      rotate(values, cos_sin, p.rotary, p.interleaved);
      narrow(values, p.head_dim, to + head * p.head_dim);
    };
    const i64 place = p.write_index[t] * p.kv_heads * p.head_dim;
    E* q_to = static_cast<E*>(p.q_out) + t * p.out_stride;
    for (i64 h = 0; h < p.heads; ++h) turn(p.q, p.q_stride, h, p.q_norm, q_to);
    if (place < 0) return;
    for (i64 h = 0; h < p.kv_heads; ++h) turn(p.k, p.k_stride, h, p.k_norm, static_cast<E*>(p.k_arena) + place);
    std::memcpy(static_cast<E*>(p.v_arena) + place, static_cast<const E*>(p.v) + t * p.v_stride,
                static_cast<std::size_t>(p.kv_heads * p.head_dim) * sizeof(E));
  });
}

template <class E>
void rope_mla_of(const RopeMla& p) {
  for_tokens(p.tokens, p.heads * p.rope_dim + p.latent_dim, [&](i64 t) {
    alignas(64) float values[head_dim_max];
    const float* cos_sin = p.cos_sin + p.positions[t] * p.rope_dim;
    auto turn = [&](const E* from, E* to) {
      widen_normed<E>(from, p.rope_dim, nullptr, 0.0f, values);
      rotate(values, cos_sin, p.rope_dim, p.interleaved);
      narrow(values, p.rope_dim, to);
    };
    for (i64 h = 0; h < p.heads; ++h) {
      turn(static_cast<const E*>(p.q_rope) + t * p.q_token_stride + h * p.q_head_stride,
           static_cast<E*>(p.q_out) + t * p.out_token_stride + h * p.out_head_stride);
    }
    if (p.write_index[t] < 0) return;
    E* place = static_cast<E*>(p.arena) + p.write_index[t] * (p.latent_dim + p.rope_dim);
    turn(static_cast<const E*>(p.k_rope) + t * p.k_stride, place + p.latent_dim);
    widen_normed(static_cast<const E*>(p.latent) + t * p.latent_stride, p.latent_dim, static_cast<const E*>(p.norm), p.eps,
                 values);
    narrow(values, p.latent_dim, place);
  });
}

}  // namespace

void rope_gqa(const RopeGqa& p) { p.dtype == Dtype::f32 ? rope_gqa_of<float>(p) : rope_gqa_of<bf16>(p); }
void rope_mla(const RopeMla& p) { p.dtype == Dtype::f32 ? rope_mla_of<float>(p) : rope_mla_of<bf16>(p); }

}  // namespace tokenspeed::cpu::TS_ISA
