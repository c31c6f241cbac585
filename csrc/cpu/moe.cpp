// SPDX-License-Identifier: MIT
// Mixture of experts: routing, and the experts themselves.
//
// Work is grouped by expert: a pair is (token, one of its experts), pairs are sorted by expert, and an expert's pairs fall
// into tiles. Weights of an expert that nobody chose are not touched; those of a chosen one stream through once, whatever
// the number of pairs. One token and many run the same code: a tile of one row is a matrix-vector product.
//     1  gate and up of (expert, 64 ffn columns), silu(gate) * up        -> hidden [pairs, F]
//     2  down of (64 output columns, all experts), summed in slot order  -> y [T, C]
// Sums run in an order fixed per token, so a token's result does not depend on its batch.
#include "flash.h"
#include "operations.h"

namespace tokenspeed::cpu::TS_ISA {
namespace {

constexpr i64 tokens_chunk = 1024;
constexpr i64 task_panels = 4;
constexpr i64 task_columns = task_panels * lanes;

struct Tile {
  i64 expert, begin;  // pairs [begin, begin + rows)
  int rows;
};

// The pairs of a chunk of tokens, sorted by expert.
struct Pairs {
  i64 count = 0, tile_count = 0, touched = 0;
  std::int32_t* token;   // [count]
  std::int32_t* of;      // [tokens * top_k] -> pair, or -1
  Tile* tiles;           // [tile_count]
  i64* first_tile;       // [touched + 1]

  void build(const Experts& p, const std::int32_t* ids, i64 tokens, Carver& carver) {
    const i64 slots = tokens * p.top_k;
    token = carver.take<std::int32_t>(slots);
    of = carver.take<std::int32_t>(slots);
    tiles = carver.take<Tile>(slots);
    first_tile = carver.take<i64>(p.experts + 1);
    i64* next = carver.take<i64>(p.experts + 1);
    for (i64 e = 0; e <= p.experts; ++e) next[e] = 0;
    for (i64 i = 0; i < slots; ++i) {
      if (ids[i] >= 0 && ids[i] < p.experts) ++next[ids[i] + 1];
    }
    for (i64 e = 0; e < p.experts; ++e) {
      const i64 here = next[e + 1];
      if (here > 0) {
        first_tile[touched++] = tile_count;
        const Tiling tiling(here);
        for (i64 t = 0; t < tiling.count; ++t) tiles[tile_count++] = {e, next[e] + tiling.begin(t), tiling.size(t)};
      }
      next[e + 1] += next[e];
    }
    first_tile[touched] = tile_count;
    count = next[p.experts];
    for (i64 i = 0; i < slots; ++i) {
      of[i] = -1;
      if (ids[i] < 0 || ids[i] >= p.experts) continue;
      of[i] = static_cast<std::int32_t>(next[ids[i]]++);
      token[of[i]] = static_cast<std::int32_t>(i / p.top_k);
    }
  }

  static i64 bytes(const Experts& p, i64 tokens) {
    const i64 slots = tokens * p.top_k;
    return slots * (8 + static_cast<i64>(sizeof(Tile))) + (p.experts + 1) * 16 + 5 * 64;
  }
};

// Tiles of rows that `row(pair)` names. A tile of one row may be used where it lies.
template <class F, class Row>
void pack_tiles(const Pairs& pairs, i64 inputs, u32* packed, const u32** tile_at, Row&& row) {
  const i64 row_words = F::row_words(inputs);
  auto pack = [&](i64 t, int) {
    const Tile& tile = pairs.tiles[t];
    const typename F::Element* rows[lanes];
    for (int r = 0; r < tile.rows; ++r) rows[r] = row(tile.begin + r);
    tile_at[t] = tile.rows == 1 ? F::single(rows[0], inputs) : nullptr;
    if (tile_at[t] != nullptr) return;
    F::pack_tile(rows, tile.rows, inputs, packed + tile.begin * row_words);
    tile_at[t] = packed + tile.begin * row_words;
  };
  if (pairs.count * inputs <= 32 * 1024) {
    for (i64 t = 0; t < pairs.tile_count; ++t) pack(t, 0);
  } else {
    for_each(pairs.tile_count, pack);
  }
}

template <class E>
void gate_rows(const float* gate, const float* up, int rows, i64 width, E* to, i64 stride) {
  for (int r = 0; r < rows; ++r) {
    for (i64 i = 0; i < width; i += lanes) {
      const i64 at = r * task_columns + i;
      store(to + r * stride + i, silu(load(gate + at)) * load(up + at), width - i);
    }
  }
}

template <class F>
void experts_chunk(const Experts& p, i64 first, i64 tokens) {
  using E = typename F::Element;
  const i64 slots = tokens * p.top_k;
  const i64 x_words = F::row_words(p.width), hidden_words = F::row_words(p.ffn);
  const i64 most_words = x_words > hidden_words ? x_words : hidden_words;
  const i64 hidden_stride = round_up(p.ffn, lanes);
  Carver carver(shared_scratch(static_cast<std::size_t>(Pairs::bytes(p, tokens) + slots * 8 + slots * most_words * 4 +
                                                        slots * hidden_stride * static_cast<i64>(sizeof(E)) + 3 * 64)));
  Pairs pairs;
  pairs.build(p, p.ids + first * p.top_k, tokens, carver);
  auto** tile_at = carver.take<const u32*>(slots);
  u32* packed = carver.take<u32>(slots * most_words);
  E* hidden = carver.take<E>(slots * hidden_stride);
  const E* x = static_cast<const E*>(p.x) + first * p.x_stride;

  pack_tiles<F>(pairs, p.width, packed, tile_at, [&](i64 pair) { return x + pairs.token[pair] * p.x_stride; });
  // Up follows gate in w13; when F is not a multiple of 16 the up rows would start inside a panel, so each half is packed
  // as a matrix of its own.
  const i64 up_panels = (p.ffn + lanes - 1) / lanes, up_words = F::panel_words(p.width);
  const i64 up_groups = (up_panels + task_panels - 1) / task_panels;
  for_each(pairs.touched * up_groups, [&](i64 task, int) {
    const i64 which = task / up_groups, panel = task % up_groups * task_panels;
    const int here = static_cast<int>(up_panels - panel < task_panels ? up_panels - panel : task_panels);
    const i64 width = p.ffn - panel * lanes < here * lanes ? p.ffn - panel * lanes : here * lanes;
    const i64 expert = pairs.tiles[pairs.first_tile[which]].expert;
    const u32* gate_weight = static_cast<const u32*>(p.w13) + (2 * expert * up_panels + panel) * up_words;
    const u32* up_weight = gate_weight + up_panels * up_words;
    alignas(64) float gate[tile_max * task_columns];
    alignas(64) float up[tile_max * task_columns];
    for (i64 t = pairs.first_tile[which]; t < pairs.first_tile[which + 1]; ++t) {
      const Tile& tile = pairs.tiles[t];
      product<F>(tile.rows, tile_at[t], gate_weight, up_words, here, p.width, gate, task_columns);
      product<F>(tile.rows, tile_at[t], up_weight, up_words, here, p.width, up, task_columns);
      gate_rows(gate, up, tile.rows, width, hidden + tile.begin * hidden_stride + panel * lanes, hidden_stride);
    }
  });

  pack_tiles<F>(pairs, p.ffn, packed, tile_at, [&](i64 pair) { return hidden + pair * hidden_stride; });
  const i64 down_panels = (p.width + lanes - 1) / lanes, down_words = F::panel_words(p.ffn);
  for_each((down_panels + task_panels - 1) / task_panels, [&](i64 task, int thread) {
    const i64 panel = task * task_panels;
    const int here = static_cast<int>(down_panels - panel < task_panels ? down_panels - panel : task_panels);
    const i64 width = p.width - panel * lanes < here * lanes ? p.width - panel * lanes : here * lanes;
    auto* parts = static_cast<float*>(thread_scratch(thread, static_cast<std::size_t>(slots * task_columns) * 4));
    for (i64 t = 0; t < pairs.tile_count; ++t) {
      const Tile& tile = pairs.tiles[t];
      const u32* weight = static_cast<const u32*>(p.w2) + (tile.expert * down_panels + panel) * down_words;
      product<F>(tile.rows, tile_at[t], weight, down_words, here, p.ffn, parts + tile.begin * task_columns, task_columns);
    }
    for (i64 t = 0; t < tokens; ++t) {
      for (i64 i = 0; i < width; i += lanes) {
        vf total = zero();
        for (i64 slot = t * p.top_k; slot < (t + 1) * p.top_k; ++slot) {
          if (pairs.of[slot] < 0) continue;
          total = fma(load(parts + pairs.of[slot] * task_columns + i), splat(p.weights[first * p.top_k + slot]), total);
        }
        store(static_cast<E*>(p.y) + (first + t) * p.width + panel * lanes + i, total, width - i);
      }
    }
  });
}

template <class F>
void experts_of(const Experts& p) {
  for (i64 first = 0; first < p.tokens; first += tokens_chunk)
    experts_chunk<F>(p, first, p.tokens - first < tokens_chunk ? p.tokens - first : tokens_chunk);
}

// --- routing --------------------------------------------------------------------------------------------------------

// Index of the largest of `count` values, the lowest index among equals.
i64 largest(const float* values, i64 count) {
  i64 best = 0;
  for (i64 i = 1; i < count; ++i) {
    if (values[i] > values[best]) best = i;
  }
  return best;
}

void score(const Route& p, const float* logits, float* scores) {
  if (p.sigmoid) {
    for (i64 i = 0; i < p.experts; i += lanes) store(scores + i, sigmoid(load(logits + i, p.experts - i)), p.experts - i);
    return;
  }
  const float most = logits[largest(logits, p.experts)];
  vf total = zero();
  for (i64 i = 0; i < p.experts; i += lanes) {
    const vf e = keep_first(exp2((load(logits + i, p.experts - i) - splat(most)) * splat(log2_e)), p.experts - i, 0.0f);
    store(scores + i, e, p.experts - i);
    total = total + e;
  }
  const vf inverse = splat(1.0f / sum(total));
  for (i64 i = 0; i < p.experts; i += lanes)
    store(scores + i, load(scores + i, p.experts - i) * inverse, p.experts - i);
}

// Masks all but the best groups. `choosing` and `of_groups` are scratch of this token.
void keep_best_groups(const Route& p, float* choosing, float* of_groups) {
  const i64 size = p.experts / p.groups;
  for (i64 g = 0; g < p.groups; ++g) {
    float* members = choosing + g * size;
    const i64 best = largest(members, size);
    of_groups[g] = members[best];
    if (p.group_top2_sum) {
      float second = minus_infinity;
      for (i64 i = 0; i < size; ++i) {
        if (i != best && members[i] > second) second = members[i];
      }
      of_groups[g] += second;
    }
  }
  float* kept = of_groups + p.groups;
  for (i64 g = 0; g < p.groups; ++g) kept[g] = 0.0f;
  for (i64 n = 0; n < p.groups_top; ++n) {
    i64 best = -1;
    for (i64 g = 0; g < p.groups; ++g) {
      if (kept[g] == 0.0f && (best < 0 || of_groups[g] > of_groups[best])) best = g;
    }
    kept[best] = 1.0f;
  }
  for (i64 i = 0; i < p.experts; ++i) {
    if (kept[i / size] == 0.0f) choosing[i] = minus_infinity;
  }
}

void route_token(const Route& p, i64 token, float* scratch) {
  float* scores = scratch;
  float* choosing = scratch + p.experts;
  score(p, p.logits + token * p.experts, scores);
  for (i64 i = 0; i < p.experts; ++i) choosing[i] = scores[i] + (p.bias == nullptr ? 0.0f : p.bias[i]);
  if (p.groups_top < p.groups) keep_best_groups(p, choosing, choosing + p.experts);
  std::int32_t* ids = p.ids + token * p.top_k;
  float* weights = p.weights + token * p.top_k;
  float total = 0.0f;
  for (i64 k = 0; k < p.top_k; ++k) {
    const i64 best = largest(choosing, p.experts);
    ids[k] = static_cast<std::int32_t>(best);
    weights[k] = scores[best];
    total += scores[best];
    choosing[best] = minus_infinity;
  }
  const float factor = p.normalise ? p.scale / (total > 1e-20f ? total : 1e-20f) : p.scale;
  for (i64 k = 0; k < p.top_k; ++k) weights[k] *= factor;
}

}  // namespace

void route(const Route& p) {
  const auto bytes = static_cast<std::size_t>(4 * (2 * p.experts + 2 * p.groups + lanes));
  auto one = [&](i64 token, int thread) { route_token(p, token, static_cast<float*>(thread_scratch(thread, bytes))); };
  if (p.tokens * p.experts <= 16 * 1024) {
    for (i64 t = 0; t < p.tokens; ++t) one(t, 0);
  } else {
    for_each(p.tokens, one);
  }
}

void experts(const Experts& p) {
  if (p.format == Format::int8)
    return p.dtype == Dtype::f32 ? experts_of<Int8<float>>(p) : experts_of<Int8<bf16>>(p);
  return p.dtype == Dtype::f32 ? experts_of<Native<float>>(p) : experts_of<Native<bf16>>(p);
}

}  // namespace tokenspeed::cpu::TS_ISA
