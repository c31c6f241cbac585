# SPDX-License-Identifier: MIT
"""Op `attention.mla_decode` over a context held in 8 bits, on Hopper: fragments are converted in registers.

In: queries as the op says, an arena of `fp8.Latents` (blocks of 64 tokens: values 512 e4m3, rope 64 bf16, a float32
scale a token), lengths, tables and a schedule on the device. Out: [T, H, 512] and, if asked, the log-sums [T, H].
The grid depends on shapes alone. All rows have equally many new tokens.

There is no product of 8-bit by 16-bit numbers on the chip, and one of 8-bit numbers wants its operands along the
sum, which the value side of a latent is not. Staging a converted tile in shared memory moves each number four
times (docs/log/0009). Here the cache is the *left* operand of both products, which may come from registers:

    scores^T  [64 tokens, N]  =  values [64, 512]      q^T [512, N]       N folded rows: new tokens x heads
    out^T     [512, N]        =  values^T [512, 64]    weights^T [64, N]

A thread loads 16 bytes of a token at a time, converts pairs (one instruction makes two float16) and multiplies:
a byte is read from shared memory once for each product, and nothing is written back. The order of channels in a
sum is free, so the channels are permuted (`_by_fragment`, queries alike) until 16 neighbours of a token are what
one thread holds of four steps; the rows of out^T are permuted until 16 neighbours of a token are one thread's
eight tiles. Loads are free of bank conflicts: eight threads of a phase take eight different 16-byte columns.

A token's scale multiplies its scores; as a factor of its value it joins the exponent, so that weights in float16
stay in [0, 1] whatever the scales are: w = 2^(score + log2 s - peak), and the softmax's sum takes w / s.

Programs have one warpgroup and no roles; two of them share a multiprocessor (16 folded rows) and hide each other's
softmax. Work is cut as in `mla_decode`: lanes with equal runs of tiles. A row that lanes share is merged by a
second, small launch that has started early (programmatic dependent launch): nobody waits for anybody in a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tokenspeed.kernels.api.traits import BF16, whole
from tokenspeed.kernels.device import Device
from tokenspeed.kernels.fp8 import Latents
from tokenspeed.kernels.needs import Needs, Traits
from tokenspeed.kernels.spec import Band, Implementation, Kernel
from tokenspeed.kernels.triton import mla

LOG2_E = 1.4426950408889634
STAGES = 2
"""Places for tiles; pages are looked up for as many."""
RECORD = 8
ROWS_LEAST, LANES = 128, 64
"""Rows that `_schedule` is compiled for at least; lanes that a program of it writes."""
MERGED_ALONE, MERGED_MANY = (1, 64, 128), (4, 128, 16)
"""Folded rows, columns and partials that a program merges at a time: of few row blocks, which many lanes share, and of
many, which few do.
"""
ROWS_ALONE = 8

TILE = gl.constexpr(64)
LATENT = gl.constexpr(512)
ROPE = gl.constexpr(64)
LN_2 = gl.constexpr(0.6931471805599453)
NEVER = gl.constexpr(-1e30)
HALF_MAX = gl.constexpr(65504.0)
VALUES = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=2)
WORDS = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=32, rank=2))
ROPES = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


@triton.jit(do_not_specialize=["rows", "lanes"])
def _schedule(context_lens, records, rows, lanes, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Write a record a lane: first row, first tile in it, tiles of the lane; tiles and lanes of the whole."""
    row_at, lane = tl.arange(0, ROWS), tl.program_id(0) * LANES + tl.arange(0, LANES)
    lens = tl.load(context_lens + row_at, mask=row_at < rows, other=0)
    tiles = tl.cdiv(lens, 64)
    ends = tl.cumsum(tiles, 0)
    total = tl.sum(tiles, 0)
    # What a lane leaves to be merged is 64 KB, a tile 41: the more there are, the more a lane takes at least.
    # Measured: 10.0 us at 32 tiles, 15.8 at 128, 32.4 at 800 (docs/log/0009).
    least = tl.where(total >= 512, 4, tl.where(total >= 96, 2, 1))
    used = tl.minimum(tl.maximum(total // least, 1), lanes)
    at = tl.minimum(lane, used) * total // used
    left = tl.minimum(lane + 1, used) * total // used - at
    before = ends[:, None] <= at[None, :]
    row = tl.sum(before.to(tl.int32), 0)
    row_begin = tl.max(tl.where(before, ends[:, None], 0), 0)
    nothing = tl.zeros((LANES,), tl.int32)
    place, there = records + lane * 8, lane < lanes
    tl.store(place, row, mask=there)
    tl.store(place + 1, at - row_begin, mask=there)
    tl.store(place + 2, left, mask=there)
    tl.store(place + 3, nothing + total, mask=there)
    tl.store(place + 4, nothing + used, mask=there)


@gluon.jit
def _lane_of(tile, total, lanes):
    """The lane that holds a tile: lane l holds [l * total // lanes, (l + 1) * total // lanes)."""
    return ((tile + 1) * lanes - 1) // total


@gluon.jit
def _by_fragment(x, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """Permute channels [ROWS, COLUMNS] so that what one thread holds of 64 of them lay side by side."""
    split = x.reshape((ROWS, COLUMNS // 128, 4, 2, 4, 2, 2))
    return split.permute((0, 1, 3, 4, 5, 2, 6)).reshape((ROWS, COLUMNS))


@gluon.jit
def _load_queries(queries, q_values, q_ropes, token, block, tokens, HEADS: gl.constexpr, N: gl.constexpr):
    """Bring a row block's folded queries to shared memory, latent parts permuted; places past the last are zero."""
    q_latent, q_rope, latent_token, latent_head, rope_token, rope_head = queries
    wide: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0])
    narrow: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    n = block * N + gl.arange(0, N, layout=gl.SliceLayout(1, wide))
    there = (n < tokens * HEADS)[:, None]
    source = (
        q_latent + ((token + n // HEADS).to(gl.int64) * latent_token + (n % HEADS) * latent_head)[:, None]
    )
    for column in gl.static_range(0, LATENT, 256):
        d = column + gl.arange(0, 256, layout=gl.SliceLayout(0, wide))
        part = gl.load(source + d[None, :], mask=there, other=0.0).to(gl.float32)
        part = gl.minimum(gl.maximum(part, -HALF_MAX), HALF_MAX).to(gl.float16)
        q_values.slice(column, 256, dim=1).store(_by_fragment(part, N, 256))
    n = block * N + gl.arange(0, N, layout=gl.SliceLayout(1, narrow))
    d = gl.arange(0, ROPE, layout=gl.SliceLayout(0, narrow))
    there = (n < tokens * HEADS)[:, None]
    source = q_rope + ((token + n // HEADS).to(gl.int64) * rope_token + (n % HEADS) * rope_head)[:, None]
    q_ropes.store(gl.load(source + d[None, :], mask=there, other=0.0))
    fence_async_shared()


@gluon.jit
def _fetch(pages, page, stage, values_kv, ropes_kv, full):
    """Ask for a tile in its place of shared memory."""
    values, ropes, _ = pages
    token = page * TILE
    gate = full.index(stage)
    mbarrier.expect(gate, TILE * (LATENT + 2 * ROPE))
    tma.async_copy_global_to_shared(values, [token, 0], gate, values_kv.index(stage))
    tma.async_copy_global_to_shared(ropes, [token, 0], gate, ropes_kv.index(stage))


@gluon.jit
def _scale_of(scales, page, key, context, m):
    """The scales of the tokens of a tile; one past the context."""
    return gl.load(scales + page.to(gl.int64) * TILE + m, mask=key + m < context, other=1.0)


@gluon.jit
def _halves_of_pairs(first, second):
    """Words of four e4m3 of two tokens as float16: both tokens of the first channel, then of the second, .."""
    halves: gl.constexpr = (gl.float16,) * 8
    return gl.inline_asm_elementwise(
        "{ .reg .b32 a, b; .reg .b16 c, d; "
        "prmt.b32 a, $8, $9, 0x5140; mov.b32 {c, d}, a; "
        "cvt.rn.f16x2.e4m3x2 b, c; mov.b32 {$0, $1}, b; cvt.rn.f16x2.e4m3x2 b, d; mov.b32 {$2, $3}, b; "
        "prmt.b32 a, $8, $9, 0x7362; mov.b32 {c, d}, a; "
        "cvt.rn.f16x2.e4m3x2 b, c; mov.b32 {$4, $5}, b; cvt.rn.f16x2.e4m3x2 b, d; mov.b32 {$6, $7}, b; }",
        "=h,=h,=h,=h,=h,=h,=h,=h,r,r", [first, second], dtype=halves, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def _scores(values, ropes, q_values, q_ropes, scale, N: gl.constexpr, s_layout: gl.constexpr):
    """values [64, 512] q^T times each token's scale, plus ropes [64, 64] q_rope^T: [64, N]."""
    load: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [0, 8], [0, 16], [8, 0]],
        [[0, 32], [0, 64], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0]], [], [64, 128],
    )  # fmt: skip
    turned = warpgroup_mma(
        ropes, q_ropes.permute((1, 0)), gl.zeros([64, N], gl.float32, layout=s_layout), use_acc=False,
        is_async=True,
    )  # fmt: skip
    total = gl.zeros([64, N], gl.float32, layout=s_layout)
    for part in gl.static_range(4):
        left = values.slice(part * 128, 128, dim=1).load(load).to(gl.float16)
        left = gl.convert_layout(
            _by_fragment(left, 64, 128), gl.DotOperandLayout(0, s_layout, 2), assert_trivial=True
        )
        right = q_values.slice(part * 128, 128, dim=1).permute((1, 0))
        total = warpgroup_mma(left, right, total, is_async=True)
        # Fragments must outlive the products that read them, so a wait names them.
        if N > 16:
            turned, total, left = warpgroup_mma_wait(0, deps=[turned, total, left])
        elif part > 0:
            total, held = warpgroup_mma_wait(1, deps=[total, held])  # noqa: F821 - of the part before
        held = left
    turned, total, held = warpgroup_mma_wait(0, deps=[turned, total, held])
    return total * scale[:, None] + turned


@gluon.jit
def _add_values(values, weights, acc, N: gl.constexpr, o_layout: gl.constexpr):
    """acc [512, N] plus values^T [512, 64] weights^T [64, N]."""
    load: gl.constexpr = gl.DistributedLinearLayout(
        [[1, 0], [0, 1], [0, 2], [8, 0]],
        [[2, 0], [4, 0], [0, 4], [0, 8], [0, 16]], [[0, 32], [0, 64]], [], [16, 128],
    )  # fmt: skip
    words = values._reinterpret(gl.int32, [64, 128], WORDS)
    for part in gl.static_range(4):
        word = words.slice(part * 16, 16, dim=0).load(load)
        first, second = gl.split(word.reshape((8, 2, 128)).permute((0, 2, 1)))
        a0, a1, b0, b1, c0, c1, d0, d1 = _halves_of_pairs(first, second)
        a, b, c, d = gl.join(a0, a1), gl.join(b0, b1), gl.join(c0, c1), gl.join(d0, d1)
        left = gl.join(
            gl.join(a, c), gl.join(b, d)
        )  # [8 pairs, 128 words, 2 tokens, channel / 2, channel % 2]
        left = (
            left.permute((1, 3, 4, 0, 2))
            .reshape((4, 8, 8, 2, 16))
            .permute((2, 0, 3, 1, 4))
            .reshape((512, 16))
        )
        left = gl.convert_layout(left, gl.DotOperandLayout(0, o_layout, 2), assert_trivial=True)
        acc = warpgroup_mma(left, weights.slice(part * 16, 16, dim=0), acc, is_async=True)
        if N > 16:
            acc, left = warpgroup_mma_wait(0, deps=[acc, left])
        elif part > 0:
            acc, held = warpgroup_mma_wait(1, deps=[acc, held])  # noqa: F821 - of the part before
        held = left
    acc, held = warpgroup_mma_wait(0, deps=[acc, held])
    return acc


@gluon.jit
def _clear_tail(values, kept):
    """Zero the tokens of a tile from `kept` on: what lies past a context may be anything, and 0 x NaN is NaN."""
    layout: gl.constexpr = gl.BlockedLayout([1, 16], [1, 32], [4, 1], [1, 0])
    n = gl.arange(0, TILE, layout=gl.SliceLayout(1, layout))
    there = values.load(layout).to(gl.int8, bitcast=True)
    there = gl.where((n < kept)[:, None], there, gl.zeros_like(there))
    values.store(there.to(values.dtype, bitcast=True))
    gl.thread_barrier()


@gluon.jit
def _store(
    answer, run, acc, inverse, log_sum, row_begin, tiles, first, tokens,
    HEADS: gl.constexpr, N: gl.constexpr, o_layout: gl.constexpr,
):  # fmt: skip
    """Write a row block: the result, or the partial of a row that other lanes hold too."""
    out, lse, sums, stats = answer
    lane, lanes, total_tiles, block, blocks = run
    opened = _lane_of(row_begin, total_tiles, lanes)
    acc = acc * inverse[None, :]
    result = acc.reshape((8, 4, 2, 8, N)).permute((1, 3, 0, 2, 4)).reshape((512, N)).permute((1, 0))
    layout: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [0, 8], [1, 0], [8, 0]] + ([[16, 0]] if N == 32 else []),
        [[2, 0], [4, 0], [0, 16], [0, 32], [0, 64]], [[0, 128], [0, 256]], [], [N, 512],
    )  # fmt: skip
    result = gl.convert_layout(result, layout, assert_trivial=True)
    n = gl.arange(0, N, layout=gl.SliceLayout(1, layout))
    d = gl.arange(0, 512, layout=gl.SliceLayout(0, layout))
    n_stats = gl.arange(0, N, layout=gl.SliceLayout(0, o_layout))
    valid = block * N + n < tokens * HEADS
    if opened < _lane_of(row_begin + tiles - 1, total_tiles, lanes):
        slot = 2 * lane + gl.where(lane == opened, 1, 0)
        at = (slot * blocks + block) * N
        gl.store(stats + at + n_stats, log_sum, mask=block * N + n_stats < tokens * HEADS)
        gl.store(sums + (at + n).to(gl.int64)[:, None] * 512 + d[None, :], result, mask=valid[:, None])
    else:
        place = (first * HEADS + block * N + n).to(gl.int64)[:, None] * 512 + d[None, :]
        gl.store(out + place, result.to(out.dtype.element_ty), mask=valid[:, None])
        if lse is not None:
            gl.store(
                lse + first * HEADS + block * N + n_stats, log_sum * LN_2,
                mask=block * N + n_stats < tokens * HEADS,
            )  # fmt: skip


@gluon.jit(do_not_specialize=["rows", "each"])
def _decode(
    q_latent, q_rope, values, ropes, scales, block_table, context_lens, records, out, lse, sums, stats,
    rows, each, scale_log2, latent_token, latent_head, rope_token, rope_head, table_row,
    HEADS: gl.constexpr, N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    s_tokens: gl.constexpr = gl.SliceLayout(1, s_layout)
    s_rows: gl.constexpr = gl.SliceLayout(0, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(0, o_layout)
    gdc_wait()
    gdc_launch_dependents()
    lane, block = gl.program_id(0), gl.program_id(1)
    record = records + lane * 8
    row, begin, left = gl.load(record), gl.load(record + 1), gl.load(record + 2)
    total_tiles, lanes = gl.load(record + 3), gl.load(record + 4)
    run = lane, lanes, total_tiles, block, gl.num_programs(1)
    pages = values, ropes, scales
    queries = q_latent, q_rope, latent_token, latent_head, rope_token, rope_head
    answer = out, lse, sums, stats

    values_kv = gl.allocate_shared_memory(values.dtype, [STAGES, TILE, LATENT], values.layout)
    ropes_kv = gl.allocate_shared_memory(ropes.dtype, [STAGES, TILE, ROPE], ropes.layout)
    q_values = gl.allocate_shared_memory(
        gl.float16, [N, LATENT], gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    )
    q_ropes = gl.allocate_shared_memory(ropes.dtype, [N, ROPE], ropes.layout)
    weights = gl.allocate_shared_memory(
        gl.float16, [TILE, N], gl.NVMMASharedLayout(swizzle_byte_width=2 * N, element_bitwidth=16, rank=2)
    )
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(STAGES):
        mbarrier.init(full.index(place), count=1)
    fence_async_shared()

    m = gl.arange(0, TILE, layout=s_tokens)
    n = gl.arange(0, N, layout=s_rows)
    at = lane * total_tiles // lanes
    step = 0
    while left > 0:
        context = gl.load(context_lens + row, mask=row < rows, other=0)
        tiles = (context + TILE - 1) // TILE
        count = gl.minimum(tiles - begin, left)
        if count > 0:
            table = block_table + row * table_row + begin
            gl.thread_barrier()  # all have read what lay in the places that are filled now
            page = gl.load(table)
            _fetch(pages, page, step % STAGES, values_kv, ropes_kv, full)
            next_page = gl.load(table + 1, mask=count > 1, other=0)
            if count > 1:
                _fetch(pages, next_page, (step + 1) % STAGES, values_kv, ropes_kv, full)
            next_scale = _scale_of(scales, page, begin * TILE, context, m)
            first = row * each
            _load_queries(queries, q_values, q_ropes, first, block, each, HEADS, N)
            sees = context - each + 1 + (block * N + n) // HEADS
            peak = gl.full([N], NEVER, gl.float32, layout=s_rows)
            sums_of = gl.zeros([TILE, N], gl.float32, layout=s_layout)
            acc = gl.zeros([LATENT, N], gl.float32, layout=o_layout)
            for i in range(count):
                stage = step % STAGES
                key = (begin + i) * TILE
                # What is needed of later tiles beside their bytes is asked for a tile before it is used.
                scale = next_scale
                next_scale = _scale_of(scales, next_page, key + TILE, context, m)
                next_page = gl.load(table + i + 2, mask=i + 2 < count, other=0)
                mbarrier.wait(full.index(stage), (step // STAGES) & 1)
                kv = values_kv.index(stage)
                if key + TILE > context:
                    _clear_tail(kv, context - key)
                scores = _scores(kv, ropes_kv.index(stage), q_values, q_ropes, scale, N, s_layout)
                scores = scores * scale_log2 + gl.log2(scale)[:, None]
                if key + TILE > context - each + 1:
                    scores = gl.where((key + m)[:, None] < sees[None, :], scores, -float("inf"))
                grown = gl.maximum(peak, gl.max(scores, 0))
                shrink = gl.exp2(peak - grown)
                p = gl.exp2(scores - grown[None, :])
                sums_of = sums_of * shrink[None, :] + p * (1.0 / scale)[:, None]
                peak = grown
                weights.store(p.to(gl.float16))
                fence_async_shared()
                gl.thread_barrier()
                acc = acc * gl.convert_layout(shrink, o_rows)[None, :]
                acc = _add_values(kv, weights, acc, N, o_layout)
                gl.thread_barrier()
                if i + STAGES < count:
                    _fetch(pages, next_page, stage, values_kv, ropes_kv, full)
                step += 1
            total = gl.sum(sums_of, 0)
            seen = total > 0
            inverse = gl.where(seen, 1.0 / gl.where(seen, total, 1.0), 0.0)
            log_sum = gl.where(seen, peak + gl.log2(total), -float("inf"))
            _store(
                answer, run, acc, gl.convert_layout(inverse, o_rows), gl.convert_layout(log_sum, o_rows),
                at - begin, tiles, first, each, HEADS, N, o_layout,
            )  # fmt: skip
        at += count
        left -= count
        row += 1
        begin = 0


@triton.jit(do_not_specialize=["rows", "each", "blocks"])
def _merge(
    context_lens, records, sums, stats, out, lse, rows, each, blocks,
    HEADS: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Merge M folded rows and D columns of a row that lanes share; write zeros where no context is."""
    gdc_launch_dependents()
    gdc_wait()
    row, block, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row_at = tl.arange(0, ROWS)
    lens = tl.load(context_lens + row_at, mask=row_at < rows, other=0)
    tiles_of = tl.cdiv(lens, 64)
    begin = tl.sum(tl.where(row_at < row, tiles_of, 0), 0)
    tiles = tl.sum(tl.where(row_at == row, tiles_of, 0), 0)
    total_tiles, lanes = tl.load(records + 3), tl.load(records + 4)
    m = piece // (512 // D) * M + tl.arange(0, M)
    d = piece % (512 // D) * D + tl.arange(0, D)
    valid = block * N + m < each * HEADS
    place = row * each * HEADS + block * N + m
    to = out + place.to(tl.int64)[:, None] * 512 + d[None, :]
    if tiles == 0:
        tl.store(to, tl.zeros((M, D), out.dtype.element_ty), mask=valid[:, None])
        if lse is not None:
            tl.store(lse + place, tl.full((M,), -float("inf"), tl.float32), mask=valid)
    else:
        opened = ((begin + 1) * lanes - 1) // total_tiles
        closed = ((begin + tiles) * lanes - 1) // total_tiles
        if closed > opened:
            peak = tl.full((M,), -1e30, tl.float32)
            total = tl.zeros((M,), tl.float32)
            acc = tl.zeros((M, D), tl.float32)
            for base in range(opened, closed + 1, PARTS):
                lane = base + tl.arange(0, PARTS)
                slot = 2 * lane + (lane == opened).to(tl.int32)
                at = ((slot * blocks + block) * N)[:, None] + m[None, :]
                there = (lane <= closed)[:, None] & valid[None, :]
                log_sum = tl.load(stats + at, mask=there, other=-float("inf"), cache_modifier=".cg")
                source = sums + at.to(tl.int64)[:, :, None] * 512 + d[None, None, :]
                part = tl.load(source, mask=there[:, :, None], other=0.0, cache_modifier=".cg")
                grown = tl.maximum(peak, tl.max(log_sum, 0))
                share = tl.exp2(log_sum - grown[None, :])
                fade = tl.exp2(peak - grown)
                total = total * fade + tl.sum(share, 0)
                acc = acc * fade[:, None] + tl.sum(part * share[:, :, None], 0)
                peak = grown
            norm = tl.where(total > 0, total, 1.0)
            tl.store(to, (acc / norm[:, None]).to(out.dtype.element_ty), mask=valid[:, None])
            if lse is not None:
                log_all = tl.where(total > 0, peak + tl.log2(norm), -float("inf"))
                tl.store(lse + place, log_all * 0.6931471805599453, mask=valid)


@dataclass(frozen=True, slots=True)
class MLADecode:
    """The op for one layer: `heads` query heads on a GPU of `cores` multiprocessors. Ragged rows are `portable`'s."""

    heads: int
    cores: int
    portable: Callable[..., Tensor] | None = None

    def cut(self, row_tokens: int) -> tuple[int, int, int]:
        """(folded rows of a row block, row blocks, lanes) of rows of so many tokens."""
        folded = row_tokens * self.heads
        n = 16 if folded <= 16 else 32
        blocks = -(-folded // n)
        together = 2 if n == 16 else 1
        return n, blocks, max(1, together * self.cores // blocks)

    def schedule(
        self, context_lens: Tensor, row_tokens_max: int = 1, row_starts: Tensor | None = None
    ) -> Tensor:
        """Give every lane its run of key tiles: [lanes, 8] int32, for all layers of a step."""
        del row_starts  # ragged rows are cut where they are run
        rows, lanes = context_lens.shape[0], self.cut(row_tokens_max)[2]
        records = torch.empty((lanes, RECORD), dtype=torch.int32, device=context_lens.device)
        _schedule[(triton.cdiv(lanes, LANES),)](
            context_lens,
            records,
            rows,
            lanes,
            ROWS=max(ROWS_LEAST, triton.next_power_of_2(rows)),
            LANES=LANES,
        )
        return records

    def __call__(
        self,
        q_latent: Tensor,
        q_rope: Tensor,
        arena: Latents,
        block_table: Tensor,
        context_lens: Tensor,
        scale: float,
        *,
        row_starts: Tensor | None = None,
        row_tokens_max: int | None = None,
        lse: Tensor | None = None,
        schedule: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Attend in the latent space; without a schedule, make one (a launch more)."""
        if row_starts is not None and self.portable is not None:
            return self.portable(
                q_latent, q_rope, arena, block_table, context_lens, scale, row_starts=row_starts,
                row_tokens_max=row_tokens_max, lse=lse, out=out,
            )  # fmt: skip
        tokens, heads, latent = q_latent.shape
        rows = context_lens.shape[0]
        if out is None:
            out = torch.empty((tokens, heads, latent), dtype=q_latent.dtype, device=q_latent.device)
        if not tokens:
            return out
        each = tokens // rows
        n, blocks, _ = self.cut(each)
        if schedule is None:
            schedule = self.schedule(context_lens, each)
        lanes = schedule.shape[0]
        places = 2 * lanes * blocks * n
        sums = torch.empty((places, latent), dtype=torch.float32, device=out.device)
        stats = torch.empty(places, dtype=torch.float32, device=out.device)
        _decode[(lanes, blocks)](
            q_latent, q_rope, TensorDescriptor.from_tensor(arena.values.flatten(0, 1), [64, 512], VALUES),
            TensorDescriptor.from_tensor(arena.rope.flatten(0, 1), [64, 64], ROPES), arena.scale, block_table,
            context_lens, schedule, out, lse, sums, stats, rows, each, scale * LOG2_E,
            q_latent.stride(0), q_latent.stride(1), q_rope.stride(0), q_rope.stride(1), block_table.stride(0),
            HEADS=heads, N=n, STAGES=STAGES, num_warps=4, launch_pdl=True,
        )  # fmt: skip
        m, columns, parts = MERGED_ALONE if rows * blocks <= ROWS_ALONE else MERGED_MANY
        pieces = -(-min(n, each * heads) // m) * (latent // columns)
        _merge[(rows, blocks, pieces)](
            context_lens, schedule, sums, stats, out, lse, rows, each, blocks,
            HEADS=heads, N=n, ROWS=max(ROWS_LEAST, triton.next_power_of_2(rows)), M=m, D=columns, PARTS=parts,
            num_warps=4, launch_pdl=True,
        )  # fmt: skip
        return out


def _build(traits: Traits, device: Device) -> Implementation:
    portable = partial(mla.mla_decode, traits=traits, programs=device.cores)
    decode = MLADecode(whole(traits, "heads"), device.cores, portable)
    return Implementation(decode, schedule=decode.schedule)


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        op="attention.mla_decode",
        name="gluon_fp8",
        needs=Needs(sm=(9, 0), dtype=BF16, latent={512}, rope={64}, block_tokens={64}, kv="fp8"),
        band=Band.TUNED,
        build=_build,
    ),
)

__all__ = ["KERNELS", "MLADecode"]
