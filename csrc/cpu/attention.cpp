// SPDX-License-Identifier: MIT
// Attention over paged arenas: grouped-query and latent, one token a row (decode) and many (extend).
//
// Decode spreads (row, kv head, segment) over threads and folds segments afterwards; the boundaries are fixed positions, so
// a row's result does not depend on its batch. Extend spreads (row, kv head, block of query rows).
// Latent decode attends in the latent space, all heads sharing each token: keys are the whole arena row, values its latent
// part. Latent extend raises keys and values of each head from the latent, a span at a time.
#include "flash.h"
#include "operations.h"

namespace tokenspeed::cpu::TS_ISA {
namespace {

constexpr i64 gqa_segment = 512;
constexpr i64 extend_rows_max = 384;

// Latent decode: about five segments a row, so that threads share short contexts, and folding long ones costs little.
// Depends on the row's own context only.
i64 mla_segment(i64 context) {
  const i64 tokens = round_up(context / 5, span);
  return tokens < span ? span : tokens > 8 * span ? 8 * span : tokens;
}

struct Slice {
  std::int32_t row;
  std::int32_t begin, end;  // tokens
  std::int32_t index, count;  // among the slices of its row
};

// One slice per (row, segment), segment(context) tokens each; returns how many. `to` may be null to count only.
template <class Segment>
i64 slice_rows(const Paged& paged, const Segment& segment, Slice* to) {
  i64 total = 0;
  for (i64 row = 0; row < paged.rows; ++row) {
    const i64 context = paged.context[row], tokens = segment(context), count = (context + tokens - 1) / tokens;
    for (i64 i = 0; i < count; ++i, ++total) {
      if (to == nullptr) continue;
      const i64 end = (i + 1) * tokens < context ? (i + 1) * tokens : context;
      to[total] = {static_cast<std::int32_t>(row), static_cast<std::int32_t>(i * tokens), static_cast<std::int32_t>(end),
                   static_cast<std::int32_t>(i), static_cast<std::int32_t>(count)};
    }
  }
  return total;
}

// --- decode ---------------------------------------------------------------------------------------------------------

// Runs attend(slice, group, part) for every slice and group of heads, then folds the parts of each row and head.
//   part: [heads of the group][width + 2] floats: unnormalised sum, max, sum of weights.
template <class E, class Segment, class Attend>
void decode_slices(const Paged& paged, const Segment& segment, i64 groups, i64 group_heads, i64 value_dim, E* y, Attend&& attend) {
  const i64 width = round_up(value_dim, lanes);
  const i64 part_floats = group_heads * (width + lanes);
  const i64 count = slice_rows(paged, segment, nullptr);
  Carver carver(shared_scratch(static_cast<std::size_t>(count * (static_cast<i64>(sizeof(Slice)) + groups * part_floats * 4) + 256)));
  Slice* slices = carver.take<Slice>(count);
  float* parts = carver.take<float>(count * groups * part_floats);
  slice_rows(paged, segment, slices);
  for_each(count * groups, [&](i64 task, int thread) {
    attend(slices[task / groups], task % groups, parts + task * part_floats, thread);
  });
  auto fold_slices = [&](i64 slice, int thread) {
    if (slices[slice].index != 0) return;
    float* total = static_cast<float*>(thread_scratch(thread, static_cast<std::size_t>(width) * 4));
    for (i64 head = 0; head < groups * group_heads; ++head) {
      float most = minus_infinity, sum = 0.0f;
      for (i64 s = slice; s < slice + slices[slice].count; ++s) {
        const float* part = parts + (s * groups + head / group_heads) * part_floats + head % group_heads * (width + lanes);
        fold(most, sum, total, part[width], part[width + 1], part, width);
      }
      Flash<E>::write_normalised(total, sum, value_dim, y + (slices[slice].row * groups * group_heads + head) * value_dim);
    }
  };
  if (paged.rows == 1) {
    if (count > 0) fold_slices(0, 0);
  } else {
    for_each(count, fold_slices);
  }
}

// Into how many groups kv heads are split, so that threads have work: as few as that takes, because a group reads its span
// of the arena as one stream. It changes no result.
i64 kv_groups(i64 kv_heads, i64 slices) {
  for (i64 groups = 1; groups < kv_heads; ++groups) {
    if (kv_heads % groups == 0 && slices * groups >= 2 * threads()) return groups;
  }
  return kv_heads;
}

// One slice of one group of kv heads: span by span, head by head, fetching the next span of all its heads in the order in
// which it lies in memory.
template <class E>
void gqa_slice(const GqaAttention& p, const Slice& slice, i64 first_head, i64 kv_heads, Flash<E>* flash) {
  const i64 D = p.head_dim, stride = p.kv_heads * D;
  const E* k = static_cast<const E*>(p.k_arena) + first_head * D;
  const E* v = static_cast<const E*>(p.v_arena) + first_head * D;
  const Locate locate(p.paged, slice.row);
  const E *keys[span], *values[span], *keys_next[span], *values_next[span];
  locate.rows_padded(k, stride, slice.begin, slice.end, keys_next);
  locate.rows_padded(v, stride, slice.begin, slice.end, values_next);
  for (i64 token = slice.begin; token < slice.end; token += span) {
    std::memcpy(keys, keys_next, sizeof keys);
    std::memcpy(values, values_next, sizeof values);
    locate.rows_padded(k, stride, token + span, slice.end, keys_next);
    locate.rows_padded(v, stride, token + span, slice.end, values_next);
    for (i64 head = 0; head < kv_heads; ++head) {
      typename Flash<E>::Rows at;
      for (i64 i = 0, next = head * span; i < span; ++i, ++next) {
        at.keys[i] = keys[i] + head * D;
        at.values[i] = values[i] + head * D;
        at.keys_ahead[i] = keys_next[next / kv_heads] + next % kv_heads * D;
        at.values_ahead[i] = values_next[next / kv_heads] + next % kv_heads * D;
      }
      const i64 count = slice.end - token < span ? slice.end - token : span;
      flash[head].attend_rows(at, token, count, slice.end, p.scale * log2_e);
    }
  }
}

template <class E>
void gqa_decode(const GqaAttention& p) {
  const i64 group = p.heads / p.kv_heads, D = p.head_dim, width = round_up(D, lanes);
  auto segment = [](i64) { return gqa_segment; };
  const i64 groups = kv_groups(p.kv_heads, slice_rows(p.paged, segment, nullptr)), kv_heads = p.kv_heads / groups;
  decode_slices<E>(p.paged, segment, groups, kv_heads * group, D, static_cast<E*>(p.y),
                   [&](const Slice& slice, i64 which, float* part, int thread) {
    const auto bytes = static_cast<std::size_t>(kv_heads) * (Flash<E>::bytes(group, D, D) + sizeof(Flash<E>) + 64);
    Carver carver(thread_scratch(thread, bytes));
    Flash<E>* flash = carver.take<Flash<E>>(kv_heads);
    const E* q = static_cast<const E*>(p.q) + slice.row * p.q_stride + which * kv_heads * group * D;
    for (i64 head = 0; head < kv_heads; ++head) {
      flash[head] = Flash<E>(group, D, D);
      flash[head].place(carver, head > 0 ? flash : nullptr);
      flash[head].start([&](i64 i) { return q + (head * group + i) * D; }, [&](i64) { return slice.end - 1; });
      flash[head].clear_part();
    }
    gqa_slice<E>(p, slice, which * kv_heads, kv_heads, flash);
    for (i64 i = 0; i < kv_heads * group; ++i) flash[i / group].export_part(i % group, part + i * (width + lanes));
  });
}

template <class E>
void mla_decode_of(const MlaDecode& p) {
  const i64 L = p.latent_dim, K = L + p.rope_dim, width = round_up(L, lanes);
  decode_slices<E>(p.paged, mla_segment, 1, p.heads, L, static_cast<E*>(p.y),
                   [&](const Slice& slice, i64, float* part, int thread) {
    Flash<E> flash(p.heads, K, L);
    const std::size_t query_bytes = static_cast<std::size_t>(round_up(p.heads * K * static_cast<i64>(sizeof(E)), 64));
    Carver carver(thread_scratch(thread, Flash<E>::bytes(p.heads, K, L) + query_bytes));
    flash.place(carver);
    E* queries = carver.take<E>(p.heads * K);
    for (i64 h = 0; h < p.heads; ++h) {
      std::memcpy(queries + h * K, static_cast<const E*>(p.q_latent) + slice.row * p.latent_token_stride + h * p.latent_head_stride,
                  static_cast<std::size_t>(L) * sizeof(E));
      std::memcpy(queries + h * K + L, static_cast<const E*>(p.q_rope) + slice.row * p.rope_token_stride + h * p.rope_head_stride,
                  static_cast<std::size_t>(p.rope_dim) * sizeof(E));
    }
    const i64 context = p.paged.context[slice.row];
    const i64 end = slice.end;
    const Locate locate(p.paged, slice.row);
    flash.start([&](i64 i) { return queries + i * K; }, [&](i64) { return context - 1; });
    flash.segment(slice.begin, end, p.scale * log2_e, [&](i64 token, i64 count) {
      const E* rows[span];
      const E* ahead[span];
      locate.rows(static_cast<const E*>(p.arena), K, token, count, rows);
      locate.rows_padded(static_cast<const E*>(p.arena), K, token + span, end, ahead);
      flash.fill_keys(rows, count, K, 0, ahead);
      flash.fill_values(rows, count);
    });
    for (i64 h = 0; h < p.heads; ++h) flash.export_part(h, part + h * (width + lanes));
  });
}

// --- extend ---------------------------------------------------------------------------------------------------------

struct QueryBlock {
  std::int32_t row;
  std::int32_t begin, end;  // new tokens of the row
};

i64 query_blocks(const Paged& paged, const std::int32_t* row_starts, i64 tokens_max, QueryBlock* to) {
  i64 count = 0;
  for (i64 row = 0; row < paged.rows; ++row) {
    const std::int32_t length = row_starts[row + 1] - row_starts[row];
    for (i64 begin = 0; begin < length; begin += tokens_max, ++count) {
      const i64 end = begin + tokens_max < length ? begin + tokens_max : length;
      if (to != nullptr) to[count] = {static_cast<std::int32_t>(row), static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end)};
    }
  }
  return count;
}

// Runs attend(block, group, thread) for every block of new tokens and group of heads, longest contexts first.
template <class Attend>
void extend_blocks(const Paged& paged, const std::int32_t* row_starts, i64 tokens_max, i64 groups, Attend&& attend) {
  const i64 count = query_blocks(paged, row_starts, tokens_max, nullptr);
  auto* blocks = static_cast<QueryBlock*>(shared_scratch(static_cast<std::size_t>(count + 1) * sizeof(QueryBlock)));
  query_blocks(paged, row_starts, tokens_max, blocks);
  for_each(count * groups, [&](i64 task, int thread) { attend(blocks[count - 1 - task / groups], task % groups, thread); });
}

template <class E, class Fill>
void attend_segments(Flash<E>& flash, i64 end, float scale, Fill&& fill) {
  for (i64 begin = 0; begin < end; begin += gqa_segment) {
    flash.segment(begin, begin + gqa_segment < end ? begin + gqa_segment : end, scale, fill);
    flash.fold_segment();
  }
}

template <class E>
void gqa_extend(const GqaAttention& p) {
  const i64 group = p.heads / p.kv_heads, D = p.head_dim, stride = p.kv_heads * D;
  const i64 tokens_max = extend_rows_max / group > 0 ? extend_rows_max / group : 1;
  extend_blocks(p.paged, p.row_starts, tokens_max, p.kv_heads, [&](const QueryBlock& block, i64 kv_head, int thread) {
    const i64 rows = (block.end - block.begin) * group;
    const i64 length = p.row_starts[block.row + 1] - p.row_starts[block.row];
    const i64 first_position = p.paged.context[block.row] - length + block.begin;
    const i64 first_token = p.row_starts[block.row] + block.begin;
    Flash<E> flash(rows, D, D);
    Carver carver(thread_scratch(thread, Flash<E>::bytes(rows, D, D)));
    flash.place(carver);
    const Locate locate(p.paged, block.row);
    const E* q = static_cast<const E*>(p.q) + first_token * p.q_stride + kv_head * group * D;
    flash.start([&](i64 i) { return q + i / group * p.q_stride + i % group * D; },
                [&](i64 i) { return first_position + i / group; });
    attend_segments(flash, first_position + block.end - block.begin, p.scale * log2_e, [&](i64 token, i64 count) {
      const E* from[span];
      locate.rows(static_cast<const E*>(p.k_arena) + kv_head * D, stride, token, count, from);
      flash.fill_keys(from, count, D);
      locate.rows(static_cast<const E*>(p.v_arena) + kv_head * D, stride, token, count, from);
      flash.fill_values(from, count);
    });
    E* y = static_cast<E*>(p.y) + (first_token * p.heads + kv_head * group) * D;
    for (i64 i = 0; i < rows; ++i) flash.write(i, y + (i / group * p.heads + i % group) * D);
  });
}

// Raises one head's keys and values of a span from its latents, straight into panels.
template <class E>
class Raise {
 public:
  static constexpr int M = rows_max >= 8 ? 8 : rows_max >= 4 ? 4 : 2;  // divides a panel, even
  static constexpr int N = M == 8 ? 2 : 1;

  Raise(const MlaExtend& p, i64 head, u32* latents)
      : p_(p), words_(words_of<E>(p.latent_dim)), latents_(latents),
        w_uk_(static_cast<const u32*>(p.w_uk) + head * panels(p.nope_dim) * words_ * lanes),
        w_uv_(static_cast<const u32*>(p.w_uv) + head * panels(p.value_dim) * words_ * lanes) {}

  static i64 panels(i64 dim) { return (dim + lanes - 1) / lanes; }

  void operator()(Flash<E>& flash, const E* const* rows, i64 count) {
    for (int n = 0; n < span_panels; ++n) {
      const i64 here = count - n * lanes;
      transpose_rows(rows + n * lanes, static_cast<int>(here < 0 ? 0 : here > lanes ? lanes : here), p_.latent_dim,
                     latents_ + n * words_ * lanes, lanes);
    }
    for (i64 d = 0; d < p_.nope_dim; d += M) raise_keys(flash, d);
    for (i64 n = 0; n < panels(p_.value_dim); n += N) raise_values(flash, n);
    const E* ropes[span];
    for (i64 i = 0; i < count; ++i) ropes[i] = rows[i] + p_.latent_dim;
    flash.fill_keys(ropes, count, p_.rope_dim, words_of<E>(p_.nope_dim));
  }

 private:
  // Keys lie transposed: lanes are tokens, so the weight is the tile and the latents are the panels.
  void raise_keys(Flash<E>& flash, i64 d) {
    const u32* weight = w_uk_ + d / lanes * words_ * lanes + d % lanes;
    for (int n = 0; n < span_panels; n += N) {
      vf acc[M][N];
      clear(acc);
      accumulate<E, M, N, lanes, 1>(weight, latents_ + n * words_ * lanes, words_ * lanes, words_, acc);
      TS_UNROLL for (int r = 0; r < M; r += per_word<E>) {
        TS_UNROLL for (int j = 0; j < N; ++j) {
          if (d + r < p_.nope_dim) store_words(flash.keys(n + j) + (d + r) / per_word<E> * lanes, word<M, N>(acc, r, j));
        }
      }
    }
  }

  // Values: lanes are dimensions, so the latents are the tile and the weight is the panels.
  void raise_values(Flash<E>& flash, i64 n) {
    if (n + N > panels(p_.value_dim)) return raise_values_of<1>(flash, n);
    raise_values_of<N>(flash, n);
  }

  template <int W>
  void raise_values_of(Flash<E>& flash, i64 n) {
    for (i64 token = 0; token < span; token += M) {
      vf acc[M][W];
      clear(acc);
      accumulate<E, M, W, lanes, 1>(latents_ + token / lanes * words_ * lanes + token % lanes, w_uv_ + n * words_ * lanes,
                                    words_ * lanes, words_, acc);
      TS_UNROLL for (int r = 0; r < M; r += per_word<E>) {
        TS_UNROLL for (int j = 0; j < W; ++j)
          store_words(flash.values(n + j) + (token + r) / per_word<E> * lanes, word<M, W>(acc, r, j));
      }
    }
  }

  template <int R, int W>
  static TS_INLINE void clear(vf (&acc)[R][W]) {
    TS_UNROLL for (int r = 0; r < R; ++r) {
      TS_UNROLL for (int j = 0; j < W; ++j) acc[r][j] = zero();
    }
  }

  template <int R, int W>
  static TS_INLINE vw word(const vf (&acc)[R][W], int r, int j) {
    if constexpr (per_word<E> == 2) {
      return zip(acc[r][j], acc[r + 1][j]);
    } else {
      float whole[lanes];
      store(whole, acc[r][j]);
      return load_row(whole, lanes);
    }
  }

  const MlaExtend& p_;
  i64 words_;
  u32* latents_;
  const u32 *w_uk_, *w_uv_;
};

template <class E>
void mla_extend_of(const MlaExtend& p) {
  const i64 K = p.nope_dim + p.rope_dim, arena_stride = p.latent_dim + p.rope_dim;
  // Raising a span costs as much as attending to it with about 400 rows: blocks are large, so that it happens seldom.
  constexpr i64 tokens_max = 1024;
  extend_blocks(p.paged, p.row_starts, tokens_max, p.heads, [&](const QueryBlock& block, i64 head, int thread) {
    const i64 rows = block.end - block.begin;
    const i64 length = p.row_starts[block.row + 1] - p.row_starts[block.row];
    const i64 first_position = p.paged.context[block.row] - length + block.begin;
    const i64 first_token = p.row_starts[block.row] + block.begin;
    Flash<E> flash(rows, K, p.value_dim);
    const i64 latent_words = span * words_of<E>(p.latent_dim);
    Carver carver(thread_scratch(thread, Flash<E>::bytes(rows, K, p.value_dim) + static_cast<std::size_t>(latent_words * 4 + 64)));
    flash.place(carver);
    Raise<E> raise(p, head, carver.take<u32>(latent_words));
    const Locate locate(p.paged, block.row);
    const E* q = static_cast<const E*>(p.q) + first_token * p.q_stride + head * K;
    flash.start([&](i64 i) { return q + i * p.q_stride; }, [&](i64 i) { return first_position + i; });
    attend_segments(flash, first_position + rows, p.scale * log2_e, [&](i64 token, i64 count) {
      const E* from[span];
      locate.rows(static_cast<const E*>(p.arena), arena_stride, token, count, from);
      raise(flash, from, count);
    });
    E* y = static_cast<E*>(p.y) + (first_token * p.heads + head) * p.value_dim;
    for (i64 i = 0; i < rows; ++i) flash.write(i, y + i * p.heads * p.value_dim);
  });
}

}  // namespace

void gqa(const GqaAttention& p) {
  if (p.row_starts == nullptr) return p.dtype == Dtype::f32 ? gqa_decode<float>(p) : gqa_decode<bf16>(p);
  return p.dtype == Dtype::f32 ? gqa_extend<float>(p) : gqa_extend<bf16>(p);
}
void mla_decode(const MlaDecode& p) { p.dtype == Dtype::f32 ? mla_decode_of<float>(p) : mla_decode_of<bf16>(p); }
void mla_extend(const MlaExtend& p) { p.dtype == Dtype::f32 ? mla_extend_of<float>(p) : mla_extend_of<bf16>(p); }

}  // namespace tokenspeed::cpu::TS_ISA
