// SPDX-License-Identifier: MIT
// A logical vector of 16 lanes, the same on every instruction set: one zmm on AVX-512, two ymm on AVX2, a plain array
// elsewhere. All kernels are written once against it, so data layouts and the order of every sum are the same everywhere.
//
// The one unusual idea is the *word*: 32 bits that hold either one float or two neighbouring bf16 (or int16) of the
// summed dimension. `dot<E>(acc, a, b)` adds the product of two words lane by lane, so a matrix product over words is the
// same loop for every element type (see dot.h).
//
// This header is compiled once per instruction set, inside that set's own namespace; it defines no symbol that two sets
// could share. Translation units that include it use no templates of the standard library: the linker may keep the copy
// built for the widest set, and then a narrow machine would run it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BF16__)
#define TS_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__)
#define TS_AVX2 1
#endif
#if defined(TS_AVX512) || defined(TS_AVX2)
#include <immintrin.h>
#endif

#define TS_INLINE inline __attribute__((always_inline))
#define TS_UNROLL _Pragma("GCC unroll 16")

namespace tokenspeed::cpu::TS_ISA {

using i64 = std::int64_t;
using u32 = std::uint32_t;

struct bf16 {
  std::uint16_t bits;
};

inline constexpr int lanes = 16;

template <class E>
inline constexpr int per_word = 4 / static_cast<int>(sizeof(E));  // elements of the summed dimension in a word

template <class E>
TS_INLINE i64 words_of(i64 elements) {
  return (elements + per_word<E> - 1) / per_word<E>;
}

TS_INLINE float to_float(float x) { return x; }
TS_INLINE float to_float(bf16 x) {
  const u32 bits = static_cast<u32>(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// Round to nearest even; NaN stays NaN.
TS_INLINE void from_float(float x, float& out) { out = x; }
TS_INLINE void from_float(float x, bf16& out) {
  u32 bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    out.bits = static_cast<std::uint16_t>((bits >> 16) | 0x40u);
    return;
  }
  out.bits = static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#if defined(TS_AVX512)

struct vf { __m512 v; };   // 16 floats
struct vw { __m512i v; };  // 16 words

TS_INLINE __mmask16 first(i64 n) { return static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << n) - 1u); }

TS_INLINE vf zero() { return {_mm512_setzero_ps()}; }
TS_INLINE vf splat(float x) { return {_mm512_set1_ps(x)}; }
TS_INLINE vf load(const float* p) { return {_mm512_loadu_ps(p)}; }
TS_INLINE vf load(const bf16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
TS_INLINE vf load(const float* p, i64 n) { return n >= lanes ? load(p) : vf{_mm512_maskz_loadu_ps(first(n), p)}; }
TS_INLINE vf load(const bf16* p, i64 n) {
  if (n >= lanes) return load(p);
  const __m256i half = _mm256_maskz_loadu_epi16(first(n), p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
TS_INLINE void store(float* p, vf a) { _mm512_storeu_ps(p, a.v); }
TS_INLINE void store(bf16* p, vf a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v)));
}
TS_INLINE void store(float* p, vf a, i64 n) { n >= lanes ? store(p, a) : _mm512_mask_storeu_ps(p, first(n), a.v); }
TS_INLINE void store(bf16* p, vf a, i64 n) {
  if (n >= lanes) return store(p, a);
  _mm256_mask_storeu_epi16(p, first(n), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v)));
}
TS_INLINE vf operator+(vf a, vf b) { return {_mm512_add_ps(a.v, b.v)}; }
TS_INLINE vf operator-(vf a, vf b) { return {_mm512_sub_ps(a.v, b.v)}; }
TS_INLINE vf operator*(vf a, vf b) { return {_mm512_mul_ps(a.v, b.v)}; }
TS_INLINE vf operator/(vf a, vf b) { return {_mm512_div_ps(a.v, b.v)}; }
TS_INLINE vf fma(vf a, vf b, vf c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
TS_INLINE vf max(vf a, vf b) { return {_mm512_max_ps(a.v, b.v)}; }
TS_INLINE vf abs(vf a) { return {_mm512_abs_ps(a.v)}; }
TS_INLINE float sum(vf a) { return _mm512_reduce_add_ps(a.v); }
TS_INLINE float peak(vf a) { return _mm512_reduce_max_ps(a.v); }
TS_INLINE vf keep_first(vf a, i64 n, float other) {
  return {_mm512_mask_mov_ps(_mm512_set1_ps(other), first(n < 0 ? 0 : n), a.v)};
}
TS_INLINE vf where_below(vf x, vf bound, vf then, vf otherwise) {
  return {_mm512_mask_mov_ps(otherwise.v, _mm512_cmp_ps_mask(x.v, bound.v, _CMP_LT_OQ), then.v)};
}
TS_INLINE vf round_nearest(vf a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
TS_INLINE vf power_of_two(vf whole) {  // 2^whole for whole numbers in [-126, 127]
  return {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(whole.v), _mm512_set1_epi32(127)), 23))};
}

TS_INLINE vw load_words(const u32* p) { return {_mm512_loadu_si512(p)}; }
TS_INLINE vw splat_word(u32 w) { return {_mm512_set1_epi32(static_cast<int>(w))}; }
TS_INLINE void store_words(u32* p, vw a) { _mm512_storeu_si512(p, a.v); }
TS_INLINE void store_words(u32* p, vw a, i64 n) { _mm512_mask_storeu_epi32(p, first(n), a.v); }
TS_INLINE vw load_row(const float* p, i64 n) {
  return {n >= lanes ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi32(first(n), p)};
}
TS_INLINE vw load_row(const bf16* p, i64 n) {
  if (n >= 2 * lanes) return {_mm512_loadu_si512(p)};
  return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << n) - 1u), p)};
}
TS_INLINE vw widen(const std::int8_t* p) {  // 32 int8 -> 16 words of two int16
  return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
TS_INLINE vw zero_words() { return {_mm512_setzero_si512()}; }
TS_INLINE vw dot_int16(vw acc, vw a, vw b) {
  // Measured: 190 -> 447 GFLOP/s. With the intrinsic, GCC 12 copies every accumulator and keeps a second one in memory.
  asm("vpdpwssd %2, %1, %0" : "+v"(acc.v) : "v"(a.v), "v"(b.v));
  return acc;
}
TS_INLINE vf int_to_float(vw a) { return {_mm512_cvtepi32_ps(a.v)}; }
TS_INLINE vf low_int16(vw a) { return {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(a.v, 16), 16))}; }
TS_INLINE vf high_int16(vw a) { return {_mm512_cvtepi32_ps(_mm512_srai_epi32(a.v, 16))}; }
TS_INLINE void store_int16(std::int16_t* p, vf a) {  // whole numbers within int16
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a.v)));
}

template <class E>
vf dot(vf acc, vw a, vw b);
template <>
TS_INLINE vf dot<bf16>(vf acc, vw a, vw b) {
  return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}
template <>
TS_INLINE vf dot<float>(vf acc, vw a, vw b) {
  return {_mm512_fmadd_ps(_mm512_castsi512_ps(a.v), _mm512_castsi512_ps(b.v), acc.v)};
}

// Words (low[i], high[i]) of 16 elements of two neighbouring rows of the summed dimension.
TS_INLINE __m256i load_half(const bf16* p, i64 n) {
  return n >= lanes ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)) : _mm256_maskz_loadu_epi16(first(n), p);
}
TS_INLINE vw zip(const bf16* low, const bf16* high, i64 n) {
  const __m512i a = _mm512_cvtepu16_epi32(load_half(low, n));
  const __m512i b = _mm512_cvtepu16_epi32(load_half(high, n));
  return {_mm512_or_si512(a, _mm512_slli_epi32(b, 16))};
}
TS_INLINE void zip(const bf16* low, const bf16* high, vw& first_half, vw& second_half) {  // the same of 32
  const __m512i a = _mm512_loadu_si512(low), b = _mm512_loadu_si512(high);
  const __m512i pairs = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36,
                                         4, 35, 3, 34, 2, 33, 1, 32, 0);
  first_half.v = _mm512_permutex2var_epi16(a, pairs, b);
  second_half.v = _mm512_permutex2var_epi16(a, _mm512_add_epi16(pairs, _mm512_set1_epi16(16)), b);
}
TS_INLINE vw zip(vf low, vf high) {  // rounded to bf16
  const __m512i a = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(low.v)));
  const __m512i b = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(high.v)));
  return {_mm512_or_si512(a, _mm512_slli_epi32(b, 16))};
}

TS_INLINE void transpose(vw (&r)[16]) {
  __m512i t[16];
  TS_UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i].v, r[i + 1].v);
    t[i + 1] = _mm512_unpackhi_epi32(r[i].v, r[i + 1].v);
  }
  TS_UNROLL for (int i = 0; i < 16; i += 4) {
    r[i].v = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1].v = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2].v = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3].v = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  TS_UNROLL for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i].v, r[i + 4].v, 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i].v, r[i + 4].v, 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8].v, r[i + 12].v, 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8].v, r[i + 12].v, 0xdd);
  }
  TS_UNROLL for (int i = 0; i < 4; ++i) {
    r[i].v = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4].v = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8].v = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 12].v = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

#elif defined(TS_AVX2)

struct vf { __m256 v[2]; };
struct vw { __m256i v[2]; };

#define TS_EACH(expression) \
  { { [&](int i) TS_LAMBDA { return expression; }(0), [&](int i) TS_LAMBDA { return expression; }(1) } }
#define TS_LAMBDA __attribute__((always_inline))

TS_INLINE vf zero() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
TS_INLINE vf splat(float x) { return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }
TS_INLINE vf load(const float* p) { return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}; }
TS_INLINE __m256 load_half(const bf16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
TS_INLINE vf load(const bf16* p) { return {{load_half(p), load_half(p + 8)}}; }
template <class E>
TS_INLINE vf load(const E* p, i64 n) {
  if (n >= lanes) return load(p);
  E whole[lanes] = {};
  std::memcpy(whole, p, static_cast<std::size_t>(n) * sizeof(E));
  return load(whole);
}
TS_INLINE void store(float* p, vf a) {
  _mm256_storeu_ps(p, a.v[0]);
  _mm256_storeu_ps(p + 8, a.v[1]);
}
TS_INLINE __m256i round_bf16(__m256 a) {  // bf16 bits in the low halves of 8 words
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i near = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  return _mm256_blendv_epi8(near, quiet, _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
}
TS_INLINE void store(bf16* p, vf a) {
  const __m256i packed = _mm256_packus_epi32(round_bf16(a.v[0]), round_bf16(a.v[1]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
template <class E>
TS_INLINE void store(E* p, vf a, i64 n) {
  if (n >= lanes) return store(p, a);
  E whole[lanes];
  store(whole, a);
  std::memcpy(p, whole, static_cast<std::size_t>(n) * sizeof(E));
}
TS_INLINE vf operator+(vf a, vf b) { return TS_EACH(_mm256_add_ps(a.v[i], b.v[i])); }
TS_INLINE vf operator-(vf a, vf b) { return TS_EACH(_mm256_sub_ps(a.v[i], b.v[i])); }
TS_INLINE vf operator*(vf a, vf b) { return TS_EACH(_mm256_mul_ps(a.v[i], b.v[i])); }
TS_INLINE vf operator/(vf a, vf b) { return TS_EACH(_mm256_div_ps(a.v[i], b.v[i])); }
TS_INLINE vf fma(vf a, vf b, vf c) { return TS_EACH(_mm256_fmadd_ps(a.v[i], b.v[i], c.v[i])); }
TS_INLINE vf max(vf a, vf b) { return TS_EACH(_mm256_max_ps(a.v[i], b.v[i])); }
TS_INLINE vf abs(vf a) { return TS_EACH(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v[i])); }
TS_INLINE float sum(vf a) {
  const __m256 both = _mm256_add_ps(a.v[0], a.v[1]);
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
TS_INLINE float peak(vf a) {
  const __m256 both = _mm256_max_ps(a.v[0], a.v[1]);
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
TS_INLINE vf keep_first(vf a, i64 n, float other) {
  const __m256i limit = _mm256_set1_epi32(static_cast<int>(n < 0 ? 0 : (n > 16 ? 16 : n)));
  const __m256i index[2] = {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
  return TS_EACH(_mm256_blendv_ps(_mm256_set1_ps(other), a.v[i], _mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, index[i]))));
}
TS_INLINE vf where_below(vf x, vf bound, vf then, vf otherwise) {
  return TS_EACH(_mm256_blendv_ps(otherwise.v[i], then.v[i], _mm256_cmp_ps(x.v[i], bound.v[i], _CMP_LT_OQ)));
}
TS_INLINE vf round_nearest(vf a) {
  return TS_EACH(_mm256_round_ps(a.v[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
TS_INLINE vf power_of_two(vf whole) {
  return TS_EACH(_mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole.v[i]), _mm256_set1_epi32(127)), 23)));
}

TS_INLINE vw load_words(const u32* p) {
  return {{_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))}};
}
TS_INLINE vw splat_word(u32 w) {
  return {{_mm256_set1_epi32(static_cast<int>(w)), _mm256_set1_epi32(static_cast<int>(w))}};
}
TS_INLINE void store_words(u32* p, vw a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v[0]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.v[1]);
}
TS_INLINE vw widen(const std::int8_t* p) {
  return TS_EACH(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i))));
}
TS_INLINE vw zero_words() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
TS_INLINE vw dot_int16(vw acc, vw a, vw b) {
  return TS_EACH(_mm256_add_epi32(acc.v[i], _mm256_madd_epi16(a.v[i], b.v[i])));
}
TS_INLINE vf int_to_float(vw a) { return TS_EACH(_mm256_cvtepi32_ps(a.v[i])); }
TS_INLINE vf low_int16(vw a) {
  return TS_EACH(_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(a.v[i], 16), 16)));
}
TS_INLINE vf high_int16(vw a) { return TS_EACH(_mm256_cvtepi32_ps(_mm256_srai_epi32(a.v[i], 16))); }
TS_INLINE void store_int16(std::int16_t* p, vf a) {
  const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(a.v[0]), _mm256_cvtps_epi32(a.v[1]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

TS_INLINE __m256 low_half(__m256i w) { return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16)); }
TS_INLINE __m256 high_half(__m256i w) {
  return _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
template <class E>
vf dot(vf acc, vw a, vw b);
template <>
TS_INLINE vf dot<bf16>(vf acc, vw a, vw b) {
  const vf low = TS_EACH(_mm256_fmadd_ps(low_half(a.v[i]), low_half(b.v[i]), acc.v[i]));
  return TS_EACH(_mm256_fmadd_ps(high_half(a.v[i]), high_half(b.v[i]), low.v[i]));
}
template <>
TS_INLINE vf dot<float>(vf acc, vw a, vw b) {
  return TS_EACH(_mm256_fmadd_ps(_mm256_castsi256_ps(a.v[i]), _mm256_castsi256_ps(b.v[i]), acc.v[i]));
}
TS_INLINE vw zip(vf low, vf high) {
  return TS_EACH(_mm256_or_si256(round_bf16(low.v[i]), _mm256_slli_epi32(round_bf16(high.v[i]), 16)));
}

#else

struct vf { float v[16]; };
struct vw { u32 v[16]; };

#define TS_EACH(type, expression) \
  type out;                       \
  for (int i = 0; i < lanes; ++i) out.v[i] = expression; \
  return out

TS_INLINE float word_float(u32 w) {
  float out;
  std::memcpy(&out, &w, 4);
  return out;
}
TS_INLINE vf zero() { return {}; }
TS_INLINE vf splat(float x) { TS_EACH(vf, x); }
template <class E>
TS_INLINE vf load(const E* p) { TS_EACH(vf, to_float(p[i])); }
template <class E>
TS_INLINE vf load(const E* p, i64 n) { TS_EACH(vf, i < n ? to_float(p[i]) : 0.0f); }
template <class E>
TS_INLINE void store(E* p, vf a) {
  for (int i = 0; i < lanes; ++i) from_float(a.v[i], p[i]);
}
template <class E>
TS_INLINE void store(E* p, vf a, i64 n) {
  for (int i = 0; i < lanes && i < n; ++i) from_float(a.v[i], p[i]);
}
TS_INLINE vf operator+(vf a, vf b) { TS_EACH(vf, a.v[i] + b.v[i]); }
TS_INLINE vf operator-(vf a, vf b) { TS_EACH(vf, a.v[i] - b.v[i]); }
TS_INLINE vf operator*(vf a, vf b) { TS_EACH(vf, a.v[i] * b.v[i]); }
TS_INLINE vf operator/(vf a, vf b) { TS_EACH(vf, a.v[i] / b.v[i]); }
TS_INLINE vf fma(vf a, vf b, vf c) { TS_EACH(vf, a.v[i] * b.v[i] + c.v[i]); }
TS_INLINE vf max(vf a, vf b) { TS_EACH(vf, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
TS_INLINE vf abs(vf a) { TS_EACH(vf, __builtin_fabsf(a.v[i])); }
TS_INLINE float sum(vf a) {
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  return a.v[0];
}
TS_INLINE float peak(vf a) {
  float out = a.v[0];
  for (int i = 1; i < lanes; ++i) out = a.v[i] > out ? a.v[i] : out;
  return out;
}
TS_INLINE vf keep_first(vf a, i64 n, float other) { TS_EACH(vf, i < n ? a.v[i] : other); }
TS_INLINE vf where_below(vf x, vf bound, vf then, vf otherwise) {
  TS_EACH(vf, x.v[i] < bound.v[i] ? then.v[i] : otherwise.v[i]);
}
TS_INLINE vf round_nearest(vf a) {  // |a| < 2^22: adding and taking away 1.5 * 2^23 rounds to nearest even
  const float shift = 12582912.0f;
  TS_EACH(vf, (a.v[i] + shift) - shift);
}
TS_INLINE vf power_of_two(vf whole) { TS_EACH(vf, word_float(static_cast<u32>(static_cast<int>(whole.v[i]) + 127) << 23)); }

TS_INLINE vw load_words(const u32* p) { TS_EACH(vw, p[i]); }
TS_INLINE vw splat_word(u32 w) { TS_EACH(vw, w); }
TS_INLINE void store_words(u32* p, vw a) { std::memcpy(p, a.v, sizeof a.v); }
TS_INLINE vw widen(const std::int8_t* p) {
  TS_EACH(vw, static_cast<u32>(static_cast<std::uint16_t>(p[2 * i])) |
                  static_cast<u32>(static_cast<std::uint16_t>(p[2 * i + 1])) << 16);
}
TS_INLINE vw zero_words() { return {}; }
TS_INLINE int int16_products(u32 a, u32 b) {
  return static_cast<std::int16_t>(a) * static_cast<std::int16_t>(b) +
         static_cast<std::int16_t>(a >> 16) * static_cast<std::int16_t>(b >> 16);
}
TS_INLINE vw dot_int16(vw acc, vw a, vw b) { TS_EACH(vw, acc.v[i] + static_cast<u32>(int16_products(a.v[i], b.v[i]))); }
TS_INLINE vf int_to_float(vw a) { TS_EACH(vf, static_cast<float>(static_cast<int>(a.v[i]))); }
TS_INLINE vf low_int16(vw a) { TS_EACH(vf, static_cast<float>(static_cast<std::int16_t>(a.v[i]))); }
TS_INLINE vf high_int16(vw a) { TS_EACH(vf, static_cast<float>(static_cast<std::int16_t>(a.v[i] >> 16))); }
TS_INLINE void store_int16(std::int16_t* p, vf a) {
  for (int i = 0; i < lanes; ++i) p[i] = static_cast<std::int16_t>(a.v[i]);
}

template <class E>
vf dot(vf acc, vw a, vw b);
template <>
TS_INLINE vf dot<bf16>(vf acc, vw a, vw b) {
  TS_EACH(vf, acc.v[i] + word_float(a.v[i] << 16) * word_float(b.v[i] << 16) +
                  word_float(a.v[i] & 0xffff0000u) * word_float(b.v[i] & 0xffff0000u));
}
template <>
TS_INLINE vf dot<float>(vf acc, vw a, vw b) { TS_EACH(vf, acc.v[i] + word_float(a.v[i]) * word_float(b.v[i])); }
TS_INLINE u32 round_bf16(float x) {
  bf16 out;
  from_float(x, out);
  return out.bits;
}
TS_INLINE vw zip(vf low, vf high) { TS_EACH(vw, round_bf16(low.v[i]) | round_bf16(high.v[i]) << 16); }

#endif

#if !defined(TS_AVX512)
// Rare on the hot path of these sets, so written once by way of memory.
TS_INLINE void store_words(u32* p, vw a, i64 n) {
  u32 whole[lanes];
  store_words(whole, a);
  std::memcpy(p, whole, 4 * static_cast<std::size_t>(n < lanes ? n : lanes));
}
template <class E>
TS_INLINE vw load_row(const E* p, i64 n) {
  const i64 most = lanes * per_word<E>;
  u32 whole[lanes] = {};
  std::memcpy(whole, p, static_cast<std::size_t>(n < most ? n : most) * sizeof(E));
  return load_words(whole);
}
TS_INLINE vw zip(const bf16* low, const bf16* high, i64 n) {
  u32 whole[lanes] = {};
  for (i64 i = 0; i < (n < lanes ? n : lanes); ++i)
    whole[i] = static_cast<u32>(low[i].bits) | static_cast<u32>(high[i].bits) << 16;
  return load_words(whole);
}
TS_INLINE void zip(const bf16* low, const bf16* high, vw& first_half, vw& second_half) {
  first_half = zip(low, high, lanes);
  second_half = zip(low + lanes, high + lanes, lanes);
}
TS_INLINE void transpose(vw (&r)[16]) {
  u32 from[16][16];
  u32 to[16][16];
  for (int i = 0; i < 16; ++i) store_words(from[i], r[i]);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) to[j][i] = from[i][j];
  for (int i = 0; i < 16; ++i) r[i] = load_words(to[i]);
}
#endif

// 2^x, relative error below 3e-7, exactly 0 below -126 (so a masked score weighs exactly nothing); x <= 127.
TS_INLINE vf exp2(vf x) {
  const vf least = splat(-126.0f);
  const vf bounded = max(x, least);
  const vf whole = round_nearest(bounded);
  const vf part = bounded - whole;
  vf y = splat(1.540353039e-4f);
  y = fma(y, part, splat(1.333355815e-3f));
  y = fma(y, part, splat(9.618129108e-3f));
  y = fma(y, part, splat(5.550410866e-2f));
  y = fma(y, part, splat(2.402265070e-1f));
  y = fma(y, part, splat(6.931471806e-1f));
  y = fma(y, part, splat(1.0f));
  return where_below(x, least, zero(), y * power_of_two(whole));
}

inline constexpr float log2_e = 1.44269504f;

TS_INLINE vf sigmoid(vf x) {
  const vf bounded = max(x, splat(-87.0f));
  return splat(1.0f) / (splat(1.0f) + exp2(max(bounded * splat(-log2_e), splat(-126.0f))));
}
TS_INLINE vf silu(vf x) { return x * sigmoid(x); }

template <class E>
TS_INLINE void prefetch(const E* p) {
  __builtin_prefetch(p, 0, 3);
}

}  // namespace tokenspeed::cpu::TS_ISA
