// SPDX-License-Identifier: MIT
// Online-softmax attention of a block of query rows over spans of 64 context tokens; all four attention ops run on it.
//
//     for each segment of the context (fixed absolute boundaries)
//       for each span of 64 tokens: lay keys and values out as panels, then for each tile of query rows
//         scores = tile x key panels; p = exp2(scores - max); out = out * correction + p x value panels
//       fold the segment into the total by its log-sum-exp
//
// Every step works row by row at absolute positions, and masked scores weigh exactly nothing. So the result of a
// (row, position) is bitwise the same whatever rows are computed beside it, in whatever chunks the prompt came, and whether
// decode computed segments apart or extend one after the other. p is rounded to the dtype of the values before the product
// (the sum of weights is not); keys, values and queries are used as stored.
#pragma once

#include "dot.h"

namespace tokenspeed::cpu::TS_ISA {

inline constexpr i64 span = 64;
inline constexpr int span_panels = span / lanes;
inline constexpr float minus_infinity = -__builtin_inff();

TS_INLINE i64 round_up(i64 n, i64 unit) { return (n + unit - 1) / unit * unit; }

// Hands out pieces of one allocation, 64-byte aligned.
class Carver {
 public:
  explicit Carver(void* base) : at_(static_cast<char*>(base)) {}
  template <class T>
  T* take(i64 count) {
    T* out = reinterpret_cast<T*>(at_);
    at_ += round_up(count * static_cast<i64>(sizeof(T)), 64);
    return out;
  }

 private:
  char* at_;
};

// total <- total (+) part, by log-sum-exp in base 2. A part that saw nothing (sum 0) changes nothing.
inline void fold(float& total_max, float& total_sum, float* total, float part_max, float part_sum, const float* part,
                 i64 width) {
  if (part_sum == 0.0f) return;
  if (total_sum == 0.0f) {
    total_max = part_max;
    total_sum = part_sum;
    std::memcpy(total, part, static_cast<std::size_t>(width) * sizeof(float));
    return;
  }
  const float top = total_max > part_max ? total_max : part_max;
  float weights[lanes] = {total_max - top, part_max - top};
  store(weights, exp2(load(weights)));
  const vf keep = splat(weights[0]), add = splat(weights[1]);
  for (i64 i = 0; i < width; i += lanes) store(total + i, fma(load(part + i), add, load(total + i) * keep));
  total_sum = total_sum * weights[0] + part_sum * weights[1];
  total_max = top;
}

template <class E>
class Flash {
 public:
  static constexpr i64 span_words = span / per_word<E>;
  static constexpr i64 value_stride = (span_words + 1) * lanes;  // one line of padding: panels must not share cache sets

  Flash(i64 rows, i64 key_dim, i64 value_dim)
      : tiling_(rows), key_dim_(key_dim), key_words_(words_of<E>(key_dim)), value_dim_(value_dim),
        value_width_(round_up(value_dim, lanes)) {}

  static std::size_t bytes(i64 rows, i64 key_dim, i64 value_dim) {
    const i64 key_words = words_of<E>(key_dim), width = round_up(value_dim, lanes);
    const i64 words = rows * key_words + span * key_words + width / lanes * value_stride + 2 * rows * (width + 2) + 2 * rows;
    return static_cast<std::size_t>(words * 4 + 16 * 64);
  }

  // Takes its memory; panels may be shared with another that is not filled meanwhile.
  void place(Carver& carver, const Flash* panels_of = nullptr) {
    const i64 rows = tiling_.rows;
    queries_ = carver.take<u32>(rows * key_words_);
    keys_ = panels_of != nullptr ? panels_of->keys_ : carver.take<u32>(span * key_words_);
    values_ = panels_of != nullptr ? panels_of->values_ : carver.take<u32>(value_width_ / lanes * value_stride);
    part_ = carver.take<float>(rows * value_width_);
    total_ = carver.take<float>(rows * value_width_);
    part_max_ = carver.take<float>(rows);
    part_sum_ = carver.take<float>(rows);
    total_max_ = carver.take<float>(rows);
    total_sum_ = carver.take<float>(rows);
    last_ = carver.take<std::int32_t>(rows);
  }

  u32* keys(i64 panel) const { return keys_ + panel * key_words_ * lanes; }
  u32* values(i64 panel) const { return values_ + panel * value_stride; }
  i64 rows() const { return tiling_.rows; }

  // query(i) is row i, position(i) the last context token it may see; positions never fall as i grows.
  template <class Query, class Position>
  void start(Query&& query, Position&& position) {
    for (i64 t = 0; t < tiling_.count; ++t) {
      const E* rows[lanes];
      const i64 begin = tiling_.begin(t);
      for (int r = 0; r < tiling_.size(t); ++r) rows[r] = query(begin + r);
      transpose_rows(rows, tiling_.size(t), key_dim_, queries_ + begin * key_words_, tiling_.size(t));
    }
    for (i64 i = 0; i < rows(); ++i) {
      last_[i] = static_cast<std::int32_t>(position(i));
      total_sum_[i] = 0.0f;
      total_max_[i] = minus_infinity;
    }
  }

  // Attends to tokens [begin, end), `begin` a multiple of the span; fill(token, count) lays out the span that starts at
  // `token`. The result is in `part`.
  template <class Fill>
  void segment(i64 begin, i64 end, float scale, Fill&& fill) {
    clear_part();
    for (i64 token = begin; token < end; token += span) {
      fill(token, end - token < span ? end - token : span);
      attend_panels(token, end, scale);
    }
  }

  void clear_part() {
    for (i64 i = 0; i < rows(); ++i) {
      part_max_[i] = minus_infinity;
      part_sum_[i] = 0.0f;
    }
    std::memset(part_, 0, static_cast<std::size_t>(rows() * value_width_) * sizeof(float));
  }

  // Adds the span at `token`, laid out in panels, to the part; nothing from `end` on is seen.
  void attend_panels(i64 token, i64 end, float scale) {
    for (i64 t = 0; t < tiling_.count; ++t) {
      if (last_[tiling_.begin(t + 1) - 1] >= token) attend<tile_max>(tiling_.size(t), tiling_.begin(t), token, end, scale);
    }
  }

  // A span's rows where they lie (missing ones repeat another), and as many to fetch into cache meanwhile.
  struct Rows {
    const E *keys[span], *values[span], *keys_ahead[span], *values_ahead[span];
  };

  // Adds the span at `token`, `count` tokens of it, to the part; panels are used where there are rows enough to pay for them.
  void attend_rows(const Rows& at, i64 token, i64 count, i64 end, float scale) {
    switch (rows()) {
      case 1: return attend_direct<1>(at, token, count, end, scale);
      case 2: return attend_direct<2>(at, token, count, end, scale);
      case 3: return attend_direct<3>(at, token, count, end, scale);
      case 4: return attend_direct<4>(at, token, count, end, scale);
      default:
        fill_keys(at.keys, count, key_dim_, 0, at.keys_ahead);
        fill_values(at.values, count, at.values_ahead);
        return attend_panels(token, end, scale);
    }
  }

  void fold_segment() {
    for (i64 i = 0; i < rows(); ++i)
      fold(total_max_[i], total_sum_[i], total_ + i * value_width_, part_max_[i], part_sum_[i], part_ + i * value_width_,
           value_width_);
  }

  // Copies the segment of row i out: width floats, then max and sum.
  void export_part(i64 i, float* to) const {
    std::memcpy(to, part_ + i * value_width_, static_cast<std::size_t>(value_width_) * sizeof(float));
    to[value_width_] = part_max_[i];
    to[value_width_ + 1] = part_sum_[i];
  }

  void write(i64 i, E* to) const { write_normalised(total_ + i * value_width_, total_sum_[i], value_dim_, to); }

  static void write_normalised(const float* total, float sum, i64 width, E* to) {
    const vf inverse = splat(sum > 0.0f ? 1.0f / sum : 0.0f);
    for (i64 i = 0; i < width; i += lanes) store(to + i, load(total + i) * inverse, width - i);
  }

  // Keys from 16 rows a panel; rows past `count` are zero. `ahead`: a span of rows to fetch into cache, or null.
  void fill_keys(const E* const* rows, i64 count, i64 width, i64 from_word = 0, const E* const* ahead = nullptr) {
    for (int n = 0; n < span_panels; ++n) {
      const i64 here = count - n * lanes;
      transpose_rows(rows + n * lanes, static_cast<int>(here < 0 ? 0 : here > lanes ? lanes : here), width,
                     keys(n) + from_word * lanes, lanes, ahead == nullptr ? nullptr : ahead + n * lanes);
    }
  }

  // Values from rows, tokens paired into words; rows past `count` are zero.
  void fill_values(const E* const* rows, i64 count, const E* const* ahead = nullptr) {
    const i64 words = words_of<E>(count);
    for (i64 w = 0; w < words; ++w) {
      i64 n = 0;
      if constexpr (per_word<E> == 2) {
        for (; 2 * w + 1 < count && (n + 2) * lanes <= value_dim_; n += 2) {
          if (ahead != nullptr) {
            prefetch(ahead[2 * w] + n * lanes);
            prefetch(ahead[2 * w + 1] + n * lanes);
          }
          vw first_half, second_half;
          zip(rows[2 * w] + n * lanes, rows[2 * w + 1] + n * lanes, first_half, second_half);
          store_words(values(n) + w * lanes, first_half);
          store_words(values(n + 1) + w * lanes, second_half);
        }
      }
      for (; n * lanes < value_dim_; ++n)
        store_words(values(n) + w * lanes, value_word(rows, count, w, n * lanes, value_dim_ - n * lanes));
    }
    for (i64 n = 0; n * lanes < value_dim_; ++n)
      std::memset(values(n) + words * lanes, 0, static_cast<std::size_t>((span_words - words) * lanes) * 4);
  }

 private:
  static TS_INLINE vw value_word(const E* const* rows, i64 count, i64 w, i64 column, i64 left) {
    if constexpr (per_word<E> == 1) {
      return load_row(rows[w] + column, left);
    } else {
      if (2 * w + 1 < count) return zip(rows[2 * w] + column, rows[2 * w + 1] + column, left);
      return zip(load(rows[2 * w] + column, left), zero());
    }
  }

  template <int M>
  void attend(int m, i64 row, i64 token, i64 end, float scale) {
    if (m == M) return attend_tile<M>(row, token, end, scale);
    if constexpr (M > 1) attend<M - 1>(m, row, token, end, scale);
  }

  // Scores to weights: masks, raises the maximum, and says by how much what was summed so far must shrink.
  template <int M>
  TS_INLINE void weigh(float (&scores)[M][span], E (&weights)[M][span], float (&correction)[lanes], i64 row, i64 token, i64 end,
                       float scale) {
    for (int r = 0; r < M; ++r) {
      const i64 seen = (last_[row + r] + 1 < end ? last_[row + r] + 1 : end) - token;
      vf most = splat(minus_infinity);
      for (int n = 0; n < span_panels; ++n) {
        vf x = load(scores[r] + n * lanes) * splat(scale);
        if (seen < span) x = keep_first(x, seen - n * lanes, minus_infinity);
        store(scores[r] + n * lanes, x);
        most = max(most, x);
      }
      const float old = part_max_[row + r];
      const float here = peak(most);
      const float top = here > old ? here : old;
      part_max_[row + r] = top;
      correction[r] = top == minus_infinity ? 0.0f : old - top;
      vf total = zero();
      for (int n = 0; n < span_panels; ++n) {
        const vf p = top == minus_infinity ? zero() : exp2(load(scores[r] + n * lanes) - splat(top));
        total = total + p;
        store(weights[r] + n * lanes, p);
      }
      scores[r][0] = sum(total);
    }
    store(correction, exp2(load(correction)));
    for (int r = 0; r < M; ++r) part_sum_[row + r] = part_sum_[row + r] * correction[r] + scores[r][0];
  }

  // The same sums in the same order for a few rows, which do not pay for panels: keys and values pass through registers.
  template <int M>
  void attend_direct(const Rows& at, i64 token, i64 count, i64 end, float scale) {
    alignas(64) float scores[M][span];
    alignas(64) E weights[M][span];
    alignas(64) float correction[lanes] = {};
    for (int n = 0; n < span_panels; ++n) {
      vf acc[M];
      TS_UNROLL for (int r = 0; r < M; ++r) acc[r] = zero();
      if (n * lanes < count) add_scores<M>(at.keys + n * lanes, at.keys_ahead + n * lanes, acc);
      TS_UNROLL for (int r = 0; r < M; ++r) store(scores[r] + n * lanes, acc[r]);
    }
    weigh<M>(scores, weights, correction, 0, token, end, scale);
    const u32* p = reinterpret_cast<const u32*>(weights);
    i64 column = 0;
    for (; column + 4 * lanes <= value_dim_; column += 4 * lanes) add_values_direct<M, 4>(p, at, count, column, correction);
    for (; column < value_dim_; column += lanes) add_values_direct<M, 1>(p, at, count, column, correction);
  }

  template <int M>
  TS_INLINE void add_scores(const E* const* rows, const E* const* ahead, vf (&acc)[M]) {
    for (i64 w = 0; w < key_words_; w += lanes) {
      vw block[lanes];
      const i64 from = w * per_word<E>, left = key_dim_ - from;
      TS_UNROLL for (int r = 0; r < lanes; ++r) prefetch(ahead[r] + from);
      if (left >= lanes * per_word<E>) {
        TS_UNROLL for (int r = 0; r < lanes; ++r) block[r] = load_words(reinterpret_cast<const u32*>(rows[r] + from));
      } else {
        TS_UNROLL for (int r = 0; r < lanes; ++r) block[r] = load_row(rows[r] + from, left);
      }
      transpose(block);
      const u32* q = queries_ + w * M;
      const i64 most = key_words_ - w < lanes ? key_words_ - w : lanes;
      TS_UNROLL for (int i = 0; i < lanes; ++i) {
        if (i >= most) break;
        TS_UNROLL for (int r = 0; r < M; ++r) acc[r] = dot<E>(acc[r], splat_word(q[i * M + r]), block[i]);
      }
    }
  }

  template <int M, int N>
  TS_INLINE void add_values_direct(const u32* p, const Rows& at, i64 count, i64 column, const float* correction) {
    vf acc[M][N];
    TS_UNROLL for (int r = 0; r < M; ++r) {
      TS_UNROLL for (int n = 0; n < N; ++n)
        acc[r][n] = load(part_ + r * value_width_ + column + n * lanes) * splat(correction[r]);
    }
    auto add = [&](i64 w, const vw(&value)[N]) __attribute__((always_inline)) {
      TS_UNROLL for (int r = 0; r < M; ++r) {
        const vw weight = splat_word(p[r * span_words + w]);
        TS_UNROLL for (int n = 0; n < N; ++n) acc[r][n] = dot<E>(acc[r][n], weight, value[n]);
      }
    };
    i64 w = 0;
    vw value[N];
    if constexpr (per_word<E> == 2 && N == 4) {
      for (; 2 * w + 1 < count; ++w) {
        const E *low = at.values[2 * w] + column, *high = at.values[2 * w + 1] + column;
        prefetch(at.values_ahead[2 * w] + column);
        prefetch(at.values_ahead[2 * w] + column + 2 * lanes);
        prefetch(at.values_ahead[2 * w + 1] + column);
        prefetch(at.values_ahead[2 * w + 1] + column + 2 * lanes);
        zip(low, high, value[0], value[1]);
        zip(low + 2 * lanes, high + 2 * lanes, value[2], value[3]);
        add(w, value);
      }
    }
    for (; w < words_of<E>(count); ++w) {
      TS_UNROLL for (int n = 0; n < N; ++n)
        value[n] = value_word(at.values, count, w, column + n * lanes, value_dim_ - column - n * lanes);
      add(w, value);
    }
    TS_UNROLL for (int r = 0; r < M; ++r) {
      TS_UNROLL for (int n = 0; n < N; ++n) store(part_ + r * value_width_ + column + n * lanes, acc[r][n]);
    }
  }

  template <int M>
  __attribute__((noinline)) void attend_tile(i64 row, i64 token, i64 end, float scale) {
    alignas(64) float scores[M][span];
    alignas(64) E weights[M][span];
    alignas(64) float correction[lanes] = {};
    product_rows<Native<E, false>, M>(queries_ + row * key_words_, keys_, key_words_ * lanes, span_panels, key_dim_, scores[0], span);
    weigh<M>(scores, weights, correction, row, token, end, scale);
    const u32* p = reinterpret_cast<const u32*>(weights);
    constexpr int N = panels_for(M);
    i64 n = 0;
    for (; (n + N) * lanes <= value_width_; n += N) add_values<M, N>(p, row, n, correction);
    if constexpr (N > 1) {
      for (; n * lanes < value_width_; ++n) add_values<M, 1>(p, row, n, correction);
    }
  }

  template <int M, int N>
  TS_INLINE void add_values(const u32* p, i64 row, i64 panel, const float* correction) {
    float* out = part_ + row * value_width_ + panel * lanes;
    vf acc[M][N];
    TS_UNROLL for (int r = 0; r < M; ++r) {
      TS_UNROLL for (int n = 0; n < N; ++n) acc[r][n] = load(out + r * value_width_ + n * lanes) * splat(correction[r]);
    }
    accumulate<E, M, N, 1, static_cast<int>(span_words)>(p, values(panel), value_stride, span_words, acc);
    TS_UNROLL for (int r = 0; r < M; ++r) {
      TS_UNROLL for (int n = 0; n < N; ++n) store(out + r * value_width_ + n * lanes, acc[r][n]);
    }
  }

  Tiling tiling_;
  i64 key_dim_, key_words_, value_dim_, value_width_;
  u32 *queries_ = nullptr, *keys_ = nullptr, *values_ = nullptr;
  float *part_ = nullptr, *total_ = nullptr;
  float *part_max_ = nullptr, *part_sum_ = nullptr, *total_max_ = nullptr, *total_sum_ = nullptr;
  std::int32_t* last_ = nullptr;
};

// Addresses of the tokens of one request: row_of(i) is the flat arena index of token i.
struct Locate {
  const std::int32_t* table;
  i64 block_tokens;
  Locate(const Paged& p, i64 row) : table(p.block_table + row * p.table_stride), block_tokens(p.block_tokens) {}

  // to[i] = base + stride * arena index of token `token + i`.
  template <class E>
  void rows(const E* base, i64 stride, i64 token, i64 count, const E** to) const {
    i64 block = token / block_tokens, left = block_tokens - token % block_tokens;
    const E* row = base + (table[block] * block_tokens + token % block_tokens) * stride;
    for (i64 i = 0; i < count; ++i, row += stride) {
      if (left-- == 0) {
        row = base + table[++block] * block_tokens * stride;
        left = block_tokens - 1;
      }
      to[i] = row;
    }
  }

  // The span at `token` as far as `end` goes; past it rows repeat, and are `base` when there is none.
  template <class E>
  void rows_padded(const E* base, i64 stride, i64 token, i64 end, const E** to) const {
    const i64 count = end - token < span ? end - token : span;
    if (count > 0) rows(base, stride, token, count, to);
    for (i64 i = count > 0 ? count : 0; i < span; ++i) to[i] = i > 0 ? to[i - 1] : base;
  }
};

}  // namespace tokenspeed::cpu::TS_ISA
