// SPDX-License-Identifier: MIT
// Dense products: one token streams the weights once at memory bandwidth, many tokens reuse each panel from cache.
//
// A task is a few panels times a block of rows whose tiles stay in L2; panels run fastest, so weights stream through once
// per row block. Tasks are taken off a counter, so a core that is slowed by others takes fewer.
#include "operations.h"

namespace tokenspeed::cpu::TS_ISA {
namespace {

constexpr i64 task_panels = 4;
constexpr i64 row_block_bytes = 384 * 1024;

template <class F>
i64 packed_words(const Pack& p) {
  return p.matrices * ((p.outputs + lanes - 1) / lanes) * F::panel_words(p.inputs);
}

template <class F>
void pack_all(const Pack& p) {
  using E = typename F::Element;
  const i64 panels = (p.outputs + lanes - 1) / lanes;
  for_each(p.matrices * panels, [&](i64 task, int) {
    const i64 first_row = task % panels * lanes;
    const E* matrix = static_cast<const E*>(p.weight) + task / panels * p.outputs * p.inputs;
    const int count = static_cast<int>(p.outputs - first_row < lanes ? p.outputs - first_row : lanes);
    const E* rows[lanes];
    for (int r = 0; r < count; ++r) rows[r] = matrix + (first_row + r) * p.inputs;
    F::pack_panel(rows, count, p.inputs, static_cast<u32*>(p.to) + task * F::panel_words(p.inputs));
  });
}

template <class O>
void write_rows(const float* from, i64 ld, int rows, i64 width, const O* bias, O* to, i64 to_stride) {
  for (int r = 0; r < rows; ++r) {
    for (i64 i = 0; i < width; i += lanes) {
      vf value = load(from + r * ld + i);
      if (bias != nullptr) value = value + load(bias + i, width - i);
      store(to + r * to_stride + i, value, width - i);
    }
  }
}

template <class F, class O>
void run(const Linear& p) {
  using E = typename F::Element;
  const Tiling tiling(p.tokens);
  const i64 row_words = F::row_words(p.inputs);
  const i64 panel_words = F::panel_words(p.inputs);
  const i64 panels = (p.outputs + lanes - 1) / lanes;
  const u32* tiles = p.tokens == 1 && p.heads == 1 ? F::single(static_cast<const E*>(p.x), p.inputs) : nullptr;
  if (tiles == nullptr) {
    u32* packed = static_cast<u32*>(shared_scratch(static_cast<std::size_t>(p.heads * p.tokens * row_words * 4)));
    auto pack_tile = [&](i64 task, int) {
      const i64 head = task / tiling.count;
      const i64 begin = tiling.begin(task % tiling.count);
      const int count = tiling.size(task % tiling.count);
      const E* rows[lanes];
      for (int r = 0; r < count; ++r) rows[r] = static_cast<const E*>(p.x) + (begin + r) * p.x_stride + head * p.x_head_stride;
      F::pack_tile(rows, count, p.inputs, packed + (head * p.tokens + begin) * row_words);
    };
    if (tiling.count * p.heads <= 2) {  // less work than waking a worker
      for (i64 i = 0; i < tiling.count * p.heads; ++i) pack_tile(i, 0);
    } else {
      for_each(tiling.count * p.heads, pack_tile);
    }
    tiles = packed;
  }
  const i64 groups = (panels + task_panels - 1) / task_panels;
  i64 block_tiles = row_block_bytes / (rows_max * row_words * 4);
  block_tiles = block_tiles < 1 ? 1 : block_tiles;
  const i64 blocks = (tiling.count + block_tiles - 1) / block_tiles;
  for_each(p.heads * blocks * groups, [&](i64 task, int) {
    const i64 panel = task % groups * task_panels;
    const i64 block = task / groups % blocks;
    const i64 head = task / groups / blocks;
    const int here = static_cast<int>(panels - panel < task_panels ? panels - panel : task_panels);
    const i64 width = p.outputs - panel * lanes < here * lanes ? p.outputs - panel * lanes : here * lanes;
    const u32* weight = static_cast<const u32*>(p.weight) + (head * panels + panel) * panel_words;
    const i64 column = head * p.outputs + panel * lanes;
    const i64 last = (block + 1) * block_tiles < tiling.count ? (block + 1) * block_tiles : tiling.count;
    alignas(64) float sums[tile_max * task_panels * lanes];
    for (i64 t = block * block_tiles; t < last; ++t) {
      const i64 begin = tiling.begin(t);
      const int rows = tiling.size(t);
      product<F>(rows, tiles + (head * p.tokens + begin) * row_words, weight, panel_words, here, p.inputs, sums,
                 task_panels * lanes);
      const O* bias = p.bias == nullptr ? nullptr : static_cast<const O*>(p.bias) + column;
      write_rows(sums, task_panels * lanes, rows, width, bias, static_cast<O*>(p.y) + begin * p.heads * p.outputs + column,
                 p.heads * p.outputs);
    }
  });
}

template <class F>
void run_out(const Linear& p) {
  if (p.out_dtype == Dtype::f32) run<F, float>(p);
  else run<F, bf16>(p);
}

}  // namespace

std::int64_t packed_bytes(const Pack& p) {
  i64 words;
  if (p.format == Format::int8) words = packed_words<Int8<bf16>>(p);
  else words = p.dtype == Dtype::f32 ? packed_words<Native<float>>(p) : packed_words<Native<bf16>>(p);
  return words * 4;
}

void pack(const Pack& p) {
  if (p.format == Format::int8) return p.dtype == Dtype::f32 ? pack_all<Int8<float>>(p) : pack_all<Int8<bf16>>(p);
  return p.dtype == Dtype::f32 ? pack_all<Native<float>>(p) : pack_all<Native<bf16>>(p);
}

void linear(const Linear& p) {
  if (p.format == Format::int8) return p.dtype == Dtype::f32 ? run_out<Int8<float>>(p) : run_out<Int8<bf16>>(p);
  return p.dtype == Dtype::f32 ? run_out<Native<float>>(p) : run_out<Native<bf16>>(p);
}

}  // namespace tokenspeed::cpu::TS_ISA
