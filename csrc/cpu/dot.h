// SPDX-License-Identifier: MIT
// The one product that everything is made of: rows times panels.
//
//   panel     16 rows of a matrix, transposed by words: word w of row r lies at [w * 16 + r]. Read as vectors.
//   tile      m <= rows_max rows, transposed by words: word w of row r lies at [w * m + r]. Read as broadcasts.
//   product   out[m][16 n] = tile x n panels, summed over words in ascending order, one float accumulator per output.
//
// The accumulator of an output never depends on which other rows or panels are computed beside it. So a row comes out
// bitwise the same whatever the batch: alone or with others, in a chunk or whole (the law of batch invariance; contraction
// of a * b + c is off in these files, because it could differ between instantiations).
//
// A `Format` says how a weight matrix [O, K] lies in panels and how activations are laid out to meet it:
//   Native<E>  elements as they are.
//   Int8<E>    symmetric int8 weights with one float scale per output. Float activations meet them as floats. bf16
//              activations become int16 with one scale per row and group of 128 inputs (error at most 2^-16 of the group's
//              peak, finer than bf16 for all but the smallest elements); sums within a group are then exact integers.
#pragma once

#include "kernels.h"
#include "pool.h"
#include "simd.h"

namespace tokenspeed::cpu::TS_ISA {

#if defined(TS_AVX512)
inline constexpr int rows_max = 12;  // 12 x 2 accumulators of 32 registers
inline constexpr int tile_max = 16;  // rows up to here are one tile rather than two: panels are read once
constexpr int panels_for(int rows) { return rows <= 6 ? 4 : rows <= 12 ? 2 : 1; }
#elif defined(TS_AVX2)
inline constexpr int rows_max = 6;  // 6 x 1 accumulators of two registers each, of 16
inline constexpr int tile_max = rows_max;
constexpr int panels_for(int rows) { return rows <= 1 ? 4 : rows <= 2 ? 2 : 1; }
#else
inline constexpr int rows_max = 4;
inline constexpr int tile_max = rows_max;
constexpr int panels_for(int) { return 1; }
#endif

// How rows_total rows fall into tiles: as few as possible, as equal as possible.
struct Tiling {
  i64 rows, count;
  explicit Tiling(i64 rows_total)
      : rows(rows_total), count(rows_total <= tile_max ? (rows_total > 0) : (rows_total + rows_max - 1) / rows_max) {}
  i64 begin(i64 tile) const { return tile * (rows / count) + (tile < rows % count ? tile : rows % count); }
  int size(i64 tile) const { return static_cast<int>(begin(tile + 1) - begin(tile)); }
};

template <class Body>
void for_each(i64 tasks, const Body& body) {
  auto run_one = [](const void* context, std::int64_t index, int thread) {
    (*static_cast<const Body*>(context))(index, thread);
  };
  parallel(tasks, run_one, &body);
}

// acc[M][N] += tile x N panels. Word w of row r of the tile lies at a[w * SW + r * SR]. `Streamed`: the panels come from
// memory and are fetched ahead, because hardware prefetchers stop at each page; else they lie in cache.
template <class E, int M, int N, int SW, int SR, bool Streamed = false>
TS_INLINE void accumulate(const u32* a, const u32* b, i64 b_stride, i64 words, vf (&acc)[M][N]) {
  constexpr int ahead = 2048 / 64;  // vectors
  for (i64 w = 0; w < words; ++w) {
    vw panel[N];
    TS_UNROLL for (int n = 0; n < N; ++n) {
      panel[n] = load_words(b + n * b_stride + w * lanes);
      if constexpr (Streamed) prefetch(b + n * b_stride + (w + ahead) * lanes);
    }
    TS_UNROLL for (int r = 0; r < M; ++r) {
      const vw row = splat_word(a[w * SW + r * SR]);
      TS_UNROLL for (int n = 0; n < N; ++n) acc[r][n] = dot<E>(acc[r][n], row, panel[n]);
    }
  }
}

// Lays up to 16 rows of `elements` elements out by words: word w of row r at to[w * stride + r]. `stride` is 16 for a panel,
// whose missing rows become zero, and `count` for a tile, which has none. Where given, `ahead` are 16 rows that come next:
// they are fetched into cache meanwhile, line by line, so that memory is busy while shuffles are.
template <class E>
void transpose_rows(const E* const* rows, int count, i64 elements, u32* to, int stride, const E* const* ahead = nullptr) {
  const i64 words = words_of<E>(elements);
  const bool panel = stride == lanes;
  const E* at[lanes];
  for (int r = 0; r < lanes; ++r) at[r] = count == 0 ? nullptr : rows[r < count ? r : 0];
  for (i64 w = 0; w < words; w += lanes) {
    vw block[lanes];
    const i64 from = w * per_word<E>, left = elements - from;
    if (ahead != nullptr) {
      TS_UNROLL for (int r = 0; r < lanes; ++r) prefetch(ahead[r] + from);
    }
    if (left >= lanes * per_word<E> && (count == lanes || !panel)) {
      TS_UNROLL for (int r = 0; r < lanes; ++r) block[r] = load_words(reinterpret_cast<const u32*>(at[r] + from));
    } else {
      TS_UNROLL for (int r = 0; r < lanes; ++r) block[r] = r < count ? load_row(at[r] + from, left) : zero_words();
    }
    transpose(block);
    u32* line = to + w * stride;
    const i64 most = words - w < lanes ? words - w : lanes;
    if (panel && most == lanes) {
      TS_UNROLL for (int i = 0; i < lanes; ++i) store_words(line + i * lanes, block[i]);
    } else if ((words - w - lanes) * stride >= lanes) {  // each line overwrites what the one before wrote too much
      TS_UNROLL for (int i = 0; i < lanes; ++i) store_words(line + i * stride, block[i]);
    } else {
      for (i64 i = 0; i < most; ++i) store_words(line + i * stride, block[i], stride);
    }
  }
}

template <class E, bool Streamed = true>
struct Native {
  using Element = E;
  static i64 panel_words(i64 inputs) { return words_of<E>(inputs) * lanes; }
  static i64 row_words(i64 inputs) { return words_of<E>(inputs); }

  static void pack_panel(const E* const* rows, int count, i64 inputs, u32* to) {
    transpose_rows(rows, count, inputs, to, lanes);
  }
  static void pack_tile(const E* const* rows, int count, i64 inputs, u32* to) {
    transpose_rows(rows, count, inputs, to, count);
  }
  // A row alone needs no packing when it ends on a word.
  static const u32* single(const E* row, i64 inputs) {
    return inputs % per_word<E> == 0 ? reinterpret_cast<const u32*>(row) : nullptr;
  }

  template <int M, int N>
  static TS_INLINE void product(const u32* a, const u32* b, i64 b_stride, i64 inputs, vf (&acc)[M][N]) {
    accumulate<E, M, N, M, 1, Streamed>(a, b, b_stride, words_of<E>(inputs), acc);
  }
};

// A panel is its 16 scales, then its words as int8 pairs.
template <class E>
struct Int8Panel {
  static i64 pairs(i64 inputs) { return (inputs + 1) / 2; }
  static i64 panel_words(i64 inputs) { return lanes + pairs(inputs) * lanes / 2; }
  static const u32* single(const E*, i64) { return nullptr; }

  static float peak_of(const E* row, i64 count) {
    vf most = zero();
    for (i64 i = 0; i < count; i += lanes) most = max(most, abs(load(row + i, count - i)));
    return peak(most);
  }

  static void pack_panel(const E* const* rows, int count, i64 inputs, u32* to) {
    float* scales = reinterpret_cast<float*>(to);
    auto* bytes = reinterpret_cast<std::int8_t*>(to + lanes);
    for (int r = 0; r < lanes; ++r) {
      const float most = r < count ? peak_of(rows[r], inputs) : 0.0f;
      scales[r] = most > 0.0f ? most / 127.0f : 1.0f;
      for (i64 i = 0; i < 2 * pairs(inputs); ++i) {
        const float x = r < count && i < inputs ? to_float(rows[r][i]) / scales[r] : 0.0f;
        bytes[(i / 2 * lanes + r) * 2 + i % 2] = static_cast<std::int8_t>(__builtin_lrintf(x));
      }
    }
  }

  template <int M, int N>
  static TS_INLINE void scale_outputs(const u32* b, i64 b_stride, vf (&acc)[M][N]) {
    TS_UNROLL for (int n = 0; n < N; ++n) {
      const vf scale = load(reinterpret_cast<const float*>(b + n * b_stride));
      TS_UNROLL for (int r = 0; r < M; ++r) acc[r][n] = acc[r][n] * scale;
    }
  }
};

template <class E>
struct Int8;

// A tile is rows of floats, padded to a whole pair.
template <>
struct Int8<float> : Int8Panel<float> {
  using Element = float;
  static i64 row_words(i64 inputs) { return 2 * pairs(inputs); }

  static void pack_tile(const float* const* rows, int count, i64 inputs, u32* to) {
    transpose_rows(rows, count, inputs, to, count);
    if (inputs % 2 != 0) std::memset(to + inputs * count, 0, static_cast<std::size_t>(count) * 4);
  }

  template <int M, int N>
  static TS_INLINE void product(const u32* a, const u32* b, i64 b_stride, i64 inputs, vf (&acc)[M][N]) {
    for (i64 w = 0; w < pairs(inputs); ++w) {
      TS_UNROLL for (int n = 0; n < N; ++n) {
        const vw both = widen(reinterpret_cast<const std::int8_t*>(b + n * b_stride + lanes) + w * 2 * lanes);
        const vf first = low_int16(both), second = high_int16(both);
        TS_UNROLL for (int r = 0; r < M; ++r) {
          const auto* x = reinterpret_cast<const float*>(a) + 2 * w * M + r;
          acc[r][n] = fma(splat(x[M]), second, fma(splat(x[0]), first, acc[r][n]));
        }
      }
    }
    scale_outputs(b, b_stride, acc);
  }
};

// A tile is a run of groups: m float scales, then the group's words of two int16.
template <>
struct Int8<bf16> : Int8Panel<bf16> {
  using Element = bf16;
  static constexpr i64 group = 128;  // inputs that share an activation scale

  static i64 row_words(i64 inputs) { return (inputs + group - 1) / group + pairs(inputs); }

  static void pack_tile(const bf16* const* rows, int count, i64 inputs, u32* to) {
    for (i64 g = 0; g < inputs; g += group) {
      const i64 here = inputs - g < group ? inputs - g : group;
      alignas(64) std::int16_t quantised[lanes][group];
      float* scales = reinterpret_cast<float*>(to);
      const bf16* row_of[lanes];  // two int16 lie like two bf16; the bits are only moved
      for (int r = 0; r < count; ++r) {
        const float most = peak_of(rows[r] + g, here);
        const vf inverse = splat(most > 0.0f ? 32767.0f / most : 0.0f);
        scales[r] = most / 32767.0f;
        row_of[r] = reinterpret_cast<const bf16*>(quantised[r]);
        for (i64 i = 0; i < here; i += lanes)
          store_int16(quantised[r] + i, round_nearest(load(rows[r] + g + i, here - i) * inverse));
      }
      if (count == 1) std::memcpy(to + count, quantised[0], static_cast<std::size_t>(pairs(here)) * 4);
      else transpose_rows(row_of, count, 2 * pairs(here), to + count, count);
      to += count * (1 + pairs(here));
    }
  }

  template <int M, int N>
  static TS_INLINE void product(const u32* a, const u32* b, i64 b_stride, i64 inputs, vf (&acc)[M][N]) {
    const auto* bytes = reinterpret_cast<const std::int8_t*>(b + lanes);
    for (i64 left = inputs; left > 0; left -= group) {
      const i64 words = pairs(left < group ? left : group);
      float sums[M * N][lanes];
      sum_group<M, N>(a + M, bytes, 4 * b_stride, words, sums);
      TS_UNROLL for (int r = 0; r < M; ++r) {
        const vf scale = splat(reinterpret_cast<const float*>(a)[r]);
        TS_UNROLL for (int n = 0; n < N; ++n) acc[r][n] = fma(load(sums[r * N + n]), scale, acc[r][n]);
      }
      a += M * (1 + words);
      bytes += words * 2 * lanes;
    }
    scale_outputs(b, b_stride, acc);
  }

 private:
  // Not inlined: beside the float accumulators the integer ones would not fit the registers.
  template <int M, int N>
  static __attribute__((noinline)) void sum_group(const u32* x, const std::int8_t* bytes, i64 stride, i64 words,
                                                  float (*sums)[lanes]) {
    constexpr i64 ahead = 2048;
    vw whole[M][N];
    TS_UNROLL for (int r = 0; r < M; ++r) {
      TS_UNROLL for (int n = 0; n < N; ++n) whole[r][n] = zero_words();
    }
    for (i64 w = 0; w < words; ++w) {
      vw panel[N];
      TS_UNROLL for (int n = 0; n < N; ++n) {
        panel[n] = widen(bytes + n * stride + w * 2 * lanes);
        prefetch(bytes + n * stride + w * 2 * lanes + ahead);
      }
      TS_UNROLL for (int r = 0; r < M; ++r) {
        const vw row = splat_word(x[w * M + r]);
        TS_UNROLL for (int n = 0; n < N; ++n) whole[r][n] = dot_int16(whole[r][n], row, panel[n]);
      }
    }
    TS_UNROLL for (int r = 0; r < M; ++r) {
      TS_UNROLL for (int n = 0; n < N; ++n) store(sums[r * N + n], int_to_float(whole[r][n]));
    }
  }
};

template <class F, int M, int N>
__attribute__((noinline)) void product_fixed(const u32* a, const u32* b, i64 b_stride, i64 inputs, float* out, i64 ld) {
  vf acc[M][N];
  TS_UNROLL for (int r = 0; r < M; ++r) {
    TS_UNROLL for (int n = 0; n < N; ++n) acc[r][n] = zero();
  }
  F::template product<M, N>(a, b, b_stride, inputs, acc);
  TS_UNROLL for (int r = 0; r < M; ++r) {
    TS_UNROLL for (int n = 0; n < N; ++n) store(out + r * ld + n * lanes, acc[r][n]);
  }
}

template <class F, int M>
void product_rows(const u32* a, const u32* b, i64 b_stride, int panels, i64 inputs, float* out, i64 ld) {
  constexpr int N = panels_for(M);
  int n = 0;
  for (; n + N <= panels; n += N) product_fixed<F, M, N>(a, b + n * b_stride, b_stride, inputs, out + n * lanes, ld);
  if constexpr (N > 2) {
    for (; n + 2 <= panels; n += 2) product_fixed<F, M, 2>(a, b + n * b_stride, b_stride, inputs, out + n * lanes, ld);
  }
  if constexpr (N > 1) {
    for (; n < panels; ++n) product_fixed<F, M, 1>(a, b + n * b_stride, b_stride, inputs, out + n * lanes, ld);
  }
}

// out[m][16 panels] (rows `ld` floats apart) = a tile of m rows times panels that lie `b_stride` words apart.
template <class F, int M = tile_max>
void product(int m, const u32* a, const u32* b, i64 b_stride, int panels, i64 inputs, float* out, i64 ld) {
  if (m == M) return product_rows<F, M>(a, b, b_stride, panels, inputs, out, ld);
  if constexpr (M > 1) product<F, M - 1>(m, a, b, b_stride, panels, inputs, out, ld);
}

}  // namespace tokenspeed::cpu::TS_ISA
