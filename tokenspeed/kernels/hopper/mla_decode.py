# SPDX-License-Identifier: MIT
"""Op `attention.mla_decode` on Hopper, in one launch: warp-specialised, split over the context, merged inside.

In: a few query tokens a row, the paged latent arena (blocks of 64 tokens, latent 512, rope 64, 16 bit), lengths,
tables and a schedule on the device. Out: [T, H, 512] and, if asked, the log-sums [T, H]. It plans nothing on the
host: the grid depends on shapes alone, so a captured graph replays with any lengths. It shares no prefix between
rows.

Work. The new tokens of a row times its heads are folded into the rows of one product, 64 at a time: a row
block. The grid is lanes x row blocks, at most one program a multiprocessor (so all of them run at once, which
the merge needs). `_schedule`, once a step for all layers, numbers the 64-token tiles of all rows and gives
every lane an equal run of them; row blocks of a lane walk the same tiles together, so the second finds them in
the second-level cache.

    tiles   | row 0          | row 1 | row 2                    | ...
    lanes   |----- 0 ------|----- 1 ------|----- 2 ------|----- 3 ------| ...

Program. Three partitions pass a tile through two places in shared memory, each place in two halves of the
latent's columns (0-255; 256-511 and the rope part), which are filled and freed on their own:

    _load           one warp      tile -> shared memory (bulk tensor copies), later tiles -> L2
    _attend_left    four warps    scores = q k^T, softmax, weights -> shared memory; weights x left half
    _attend_right   four warps    weights x right half

A tile is key and value at once; no half is copied or transposed. `left_*`/`right_*` gates say that a half is
full or free, `ready`/`taken` hand the weights over. With several row blocks the products bound the time, not
the memory: from `LAG_BLOCKS` on, `LAG` then keeps the right half of a tile back until the next tile's
scores are done (`scored`), so that the tensor cores have work during the softmax.

Merge. A row cut by lanes leaves normalised partials in a workspace, two places a lane, for at most one row is
open at either end of a run. Each lane tells a counter and then merges its share of the columns when all have
told: the work is spread where one last arriver would read everything alone (27 us for 132 partials of 16 rows).
The last to be done puts the counter back to zero.

Numbers: scores and sums in float32, weights rounded to the dtype of the cache before the second product. The
running maximum starts at a finite -1e30, so a tile without a visible key leaves no NaN; tokens past a context
are zeroed in shared memory, for 0 x NaN is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

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

from tokenspeed.kernels.api.attention import SharedBlocks
from tokenspeed.kernels.api.traits import BF16, whole
from tokenspeed.kernels.device import Device
from tokenspeed.kernels.needs import Needs, Traits
from tokenspeed.kernels.spec import Band, Implementation, Kernel
from tokenspeed.kernels.workspace import COUNTERS, counters

LOG2_E = 1.4426950408889634
FOLDED = 64
"""Folded rows (new tokens x heads) of a row block: the M of a warpgroup's product."""
STAGES = 2
"""Places for tiles. Two of 72 KiB are more than the memory's latency times a multiprocessor's share of it."""
AHEAD_MOST = 4
"""So many tiles after the one that is copied to shared memory, a tile is asked for in the L2, at most."""
TILES_UNDERWAY = 198
"""Tiles that all lanes together may have asked for and not used: 14.6 MB, which stay in the L2 until they are.
Measured: 792 (58 MB) do not, they are read twice: 391 us where no tile is asked for ahead takes 298 (docs/log/0003).
"""
TILES_LEAST = 1
"""A lane takes at least so many tiles."""
LAG_BLOCKS = 8
"""From so many row blocks on, the right half of the output lags a tile behind. Measured: 1 to 10% faster with
eight, within 5% either way with two and four (docs/log/0003).
"""
SHARING_HEADS = 97
"""From so many heads on a single row is bound by its products, and rows that read blocks together gain nothing."""
RECORD = 8
"""int32 of a lane in a schedule."""
ROWS_LEAST, LANES_MOST = 128, 256
"""Rows that `_schedule` is compiled for at least, lanes at most: few variants."""

TILE = gl.constexpr(64)
HALF = gl.constexpr(256)
ROPE = gl.constexpr(64)
PAGE = gl.constexpr(64 * (512 + 64))
LN_2 = gl.constexpr(0.6931471805599453)
NEVER = gl.constexpr(-1e30)
SHARED = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


@triton.jit(do_not_specialize=["rows", "blocks", "resident", "programs", "least"])
def _schedule(
    context_lens, row_starts, records, rows, blocks, resident, programs, least,
    HEADS: tl.constexpr, M: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write a record a lane: first row, first tile in it, tiles in all; tiles and lanes of the whole; context of
    the first row; how many rows have none; row blocks of the longest row, `blocks` at most.
    """
    row_at, lane = tl.arange(0, ROWS), tl.arange(0, LANES)
    lens = tl.load(context_lens + row_at, mask=row_at < rows, other=0)
    if row_starts is not None:
        tokens = tl.load(row_starts + row_at + 1, mask=row_at < rows, other=0)
        tokens -= tl.load(row_starts + row_at, mask=row_at < rows, other=0)
        longest = tl.max(tl.where(lens > 0, tokens, 0), 0)
        blocks = tl.maximum(tl.minimum(tl.cdiv(longest * HEADS, M), blocks), 1)
    tiles = tl.cdiv(lens, 64)
    ends = tl.cumsum(tiles, 0)
    total = tl.sum(tiles, 0)
    used = tl.minimum(tl.maximum(total // least, 1), tl.maximum(resident // blocks, 1))
    at = tl.minimum(lane, used) * total // used
    left = tl.minimum(lane + 1, used) * total // used - at
    before = ends[:, None] <= at[None, :]
    row = tl.sum(before.to(tl.int32), 0)
    row_begin = tl.max(tl.where(before, ends[:, None], 0), 0)
    nothing = tl.zeros((LANES,), tl.int32)
    place, there = records + lane * 8, lane < programs
    tl.store(place, row, mask=there)
    tl.store(place + 1, at - row_begin, mask=there)
    tl.store(place + 2, left, mask=there)
    tl.store(place + 3, nothing + total, mask=there)
    tl.store(place + 4, nothing + used, mask=there)
    tl.store(place + 5, tl.load(context_lens + row, mask=row < rows, other=0), mask=there)
    tl.store(place + 6, nothing + tl.sum(((row_at < rows) & (lens == 0)).to(tl.int32), 0), mask=there)
    tl.store(place + 7, nothing + blocks, mask=there)


@gluon.jit
def _tokens_of(batch, row):
    """First token of a row and how many it has: equally many where nothing says otherwise."""
    row_starts, each = batch[1], batch[3]
    if row_starts is None:
        first = row * each
        tokens = each
    else:
        first = gl.load(row_starts + row)
        tokens = gl.load(row_starts + row + 1) - first
    return first, tokens


@gluon.jit
def _context_of(batch, row):
    """Tokens of context of a row, 0 past the last."""
    context_lens, rows = batch[0], batch[2]
    return gl.load(context_lens + row, mask=row < rows, other=0)


@gluon.jit
def _lane_of(tile, total, lanes):
    """The lane that holds a tile: lane l holds [l * total // lanes, (l + 1) * total // lanes)."""
    return ((tile + 1) * lanes - 1) // total


@gluon.jit
def _fetch(page, BYTES: gl.constexpr):
    """Ask for a page in the second-level cache, from one thread."""
    gl.inline_asm_elementwise(
        "{ .reg .pred p; .reg .u32 lane; mov.u32 lane, %laneid; setp.eq.u32 p, lane, 0; mov.u32 $0, 0; "
        "@p cp.async.bulk.prefetch.L2.global [$1], $2; }",
        "=r,l,r", [page, gl.to_tensor(BYTES)], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def _load(
    pages, batch, run, work, tiles_kv, gates,
    HEADS: gl.constexpr, STAGES: gl.constexpr, M: gl.constexpr, AHEAD: gl.constexpr,
):  # fmt: skip
    """Bring the tiles of this lane, half by half, as the consumers free the places."""
    arena, latents, ropes, block_table, table_row, table_at = pages
    block = run[3]
    row, begin, left, context = work
    left_kv, right_kv, rope_kv = tiles_kv
    left_full, right_full, left_free, right_free = gates
    step = 0
    while left > 0:
        count = gl.minimum((context + TILE - 1) // TILE - begin, left)
        context = _context_of(batch, row + 1)
        _, tokens = _tokens_of(batch, row)
        if block * M < tokens * HEADS:
            if table_at is None:
                entry = row * table_row + begin
            else:
                entry = gl.load(table_at + row) + begin
            for i in range(count):
                token = gl.load(block_table + entry) * TILE
                stage = step % STAGES
                parity = (step // STAGES + 1) & 1
                full = left_full.index(stage)
                mbarrier.wait(left_free.index(stage), parity)
                mbarrier.expect(full, TILE * HALF * 2)
                tma.async_copy_global_to_shared(latents, [token, 0], full, left_kv.index(stage))
                full = right_full.index(stage)
                mbarrier.wait(right_free.index(stage), parity)
                mbarrier.expect(full, TILE * (HALF + ROPE) * 2)
                tma.async_copy_global_to_shared(latents, [token, HALF], full, right_kv.index(stage))
                tma.async_copy_global_to_shared(ropes, [token, 2 * HALF], full, rope_kv.index(stage))
                step += 1
                if AHEAD > 0:  # noqa: SIM102
                    if i + AHEAD < count:
                        _fetch(arena + gl.load(block_table + entry + AHEAD).to(gl.int64) * PAGE, 2 * PAGE)
                entry += 1
        left -= count
        row += 1
        begin = 0


@gluon.jit
def _query_of(order, first, tokens, place):
    """Where the queries of a row's tokens lie."""
    token = first + place
    if order is not None:
        token = gl.load(order + token, mask=place < tokens, other=0)
    return token.to(gl.int64)


@gluon.jit
def _load_queries(queries, held, first, tokens, block, HEADS: gl.constexpr, M: gl.constexpr):
    """Bring a row block's folded queries to shared memory; places past the last are zero."""
    q_latent, q_rope, latent_token, latent_head, rope_token, rope_head, order = queries
    wide: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0])
    narrow: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    m = block * M + gl.arange(0, M, layout=gl.SliceLayout(1, wide))
    d = gl.arange(0, HALF, layout=gl.SliceLayout(0, wide))
    there = (m < tokens * HEADS)[:, None]
    token = _query_of(order, first, tokens, m // HEADS)
    source = q_latent + (token * latent_token + (m % HEADS) * latent_head)[:, None]
    half = gl.load(source + d[None, :], mask=there, other=0.0)
    other_half = gl.load(source + HALF + d[None, :], mask=there, other=0.0)
    m = block * M + gl.arange(0, M, layout=gl.SliceLayout(1, narrow))
    d = gl.arange(0, ROPE, layout=gl.SliceLayout(0, narrow))
    there = (m < tokens * HEADS)[:, None]
    token = _query_of(order, first, tokens, m // HEADS)
    source = q_rope + (token * rope_token + (m % HEADS) * rope_head)[:, None]
    rope = gl.load(source + d[None, :], mask=there, other=0.0)
    held[0].store(half)
    held[1].store(other_half)
    held[2].store(rope)
    fence_async_shared()


@gluon.jit
def _clear_tail(kv, kept):
    """Zero the tokens of a half tile from `kept` on: what lies past a context may be anything, NaN too."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    n = gl.arange(0, TILE, layout=gl.SliceLayout(1, layout))
    for column in gl.static_range(0, HALF, 64):
        piece = kv.slice(column, 64, dim=1)
        values = piece.load(layout)
        piece.store(gl.where((n < kept)[:, None], values, gl.zeros_like(values)))
    fence_async_shared()


@gluon.jit
def _store_half(
    answer, run, acc, inverse, log_sum, row_begin, tiles, first, tokens,
    half: gl.constexpr, HEADS: gl.constexpr, M: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """Write half the columns of a row block: the result, or the partial of a row that other lanes hold too."""
    out, lse, sums, stats, _ = answer
    lane, lanes, total_tiles, block, blocks = run
    opened = _lane_of(row_begin, total_tiles, lanes)
    m = gl.arange(0, M, layout=gl.SliceLayout(1, layout))
    d = gl.arange(0, HALF, layout=gl.SliceLayout(0, layout))
    valid = block * M + m < tokens * HEADS
    acc = acc * inverse[:, None]
    if opened < _lane_of(row_begin + tiles - 1, total_tiles, lanes):
        slot = 2 * lane + gl.where(lane == opened, 1, 0)
        at = ((2 * slot + half) * blocks + block) * M + m
        gl.store(stats + at, log_sum, mask=valid)
        gl.store(sums + at.to(gl.int64)[:, None] * HALF + d[None, :], acc, mask=valid[:, None])
    else:
        to = (first * HEADS + block * M + m).to(gl.int64)[:, None] * (2 * HALF) + half * HALF + d[None, :]
        gl.store(out + to, acc.to(out.dtype.element_ty), mask=valid[:, None])
        if lse is not None:  # noqa: SIM102 - the compiler wants constants on their own
            if half == 0:
                gl.store(lse + first * HEADS + block * M + m, log_sum * LN_2, mask=valid)


@gluon.jit
def _attend_left(
    queries, batch, run, work, answer, held, tiles_kv, gates, hands, scale_log2,
    HEADS: gl.constexpr, STAGES: gl.constexpr, M: gl.constexpr, LAG: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """All scores, the softmax, and the left half of the output."""
    lane, lanes, total_tiles, block, _ = run
    row, begin, left, context = work
    left_q, right_q, rope_q = held
    left_kv, right_kv, rope_kv = tiles_kv
    left_full, right_full, left_free, _ = gates
    weights, fade, logs, scored, ready, taken = hands
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16])
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    step = 0
    turns = 0
    at = lane * total_tiles // lanes
    while left > 0:
        seen_to = context
        tiles = (context + TILE - 1) // TILE
        count = gl.minimum(tiles - begin, left)
        context = _context_of(batch, row + 1)
        first, tokens = _tokens_of(batch, row)
        if (block * M < tokens * HEADS) & (count > 0):
            _load_queries(queries, held, first, tokens, block, HEADS, M)
            folded = block * M + gl.arange(0, M, layout=s_rows)
            clear = seen_to  # tokens that all new ones see
            sees = seen_to + folded * 0
            if CAUSAL:
                clear = seen_to - tokens + 1
                sees = clear + folded // HEADS
            n = gl.arange(0, TILE, layout=gl.SliceLayout(0, s_layout))
            peak = gl.full([M], NEVER, gl.float32, layout=s_rows)
            total = gl.zeros([M], gl.float32, layout=s_rows)
            acc = gl.zeros([M, HALF], gl.float32, layout=o_layout)
            for i in range(count):
                stage = step % STAGES
                parity = (step // STAGES) & 1
                scores = gl.zeros([M, TILE], gl.float32, layout=s_layout)
                mbarrier.wait(left_full.index(stage), parity)
                scores = warpgroup_mma(
                    left_q, left_kv.index(stage).permute((1, 0)), scores, use_acc=False, is_async=True
                )
                mbarrier.wait(right_full.index(stage), parity)
                scores = warpgroup_mma(right_q, right_kv.index(stage).permute((1, 0)), scores, is_async=True)
                scores = warpgroup_mma(rope_q, rope_kv.index(stage).permute((1, 0)), scores, is_async=True)
                scores = warpgroup_mma_wait(0, deps=[scores])
                if LAG:
                    mbarrier.arrive(scored)
                key = (begin + i) * TILE
                if key + TILE > clear:
                    scores = gl.where((key + n)[None, :] < sees[:, None], scores, -float("inf"))
                if key + TILE > seen_to:
                    _clear_tail(left_kv.index(stage), seen_to - key)
                grown = gl.maximum(peak, gl.max(scores, 1) * scale_log2)
                shrink = gl.exp2(peak - grown)
                p = gl.exp2(scores * scale_log2 - grown[:, None])
                total = total * shrink + gl.sum(p, 1)
                peak = grown
                p = p.to(weights.dtype)
                mbarrier.wait(taken, (turns + 1) & 1)
                weights.store(p)
                fade.store(shrink)
                fence_async_shared()
                mbarrier.arrive(ready)
                turns += 1
                acc = acc * gl.convert_layout(shrink, o_rows)[:, None]
                p = gl.convert_layout(p, gl.DotOperandLayout(0, o_layout, 2))
                acc = warpgroup_mma(p, left_kv.index(stage), acc, is_async=True)
                acc = warpgroup_mma_wait(0, deps=[acc])
                mbarrier.arrive(left_free.index(stage))
                step += 1
            seen = total > 0
            inverse = gl.where(seen, 1.0 / gl.where(seen, total, 1.0), 0.0)
            log_sum = gl.where(seen, peak + gl.log2(total), -float("inf"))
            mbarrier.wait(taken, (turns + 1) & 1)
            fade.store(inverse)
            logs.store(log_sum)
            mbarrier.arrive(ready)
            turns += 1
            _store_half(
                answer, run, acc, gl.convert_layout(inverse, o_rows), gl.convert_layout(log_sum, o_rows),
                at - begin, tiles, first, tokens, 0, HEADS, M, o_layout,
            )  # fmt: skip
        at += count
        left -= count
        row += 1
        begin = 0
    _settle(answer, batch, run, work, 0, HEADS, M)


@gluon.jit
def _clear_empty(answer, batch, run, HEADS: gl.constexpr, M: gl.constexpr):
    """Write zeros for the rows without context, which lanes share."""
    out, lse, _, _, _ = answer
    lane, _, _, block, blocks = run
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0])
    m = gl.arange(0, M, layout=gl.SliceLayout(1, layout))
    d = gl.arange(0, 512, layout=gl.SliceLayout(0, layout))
    for row in range(lane, batch[2], gl.maximum(gl.num_programs(0) // blocks, 1)):
        if _context_of(batch, row) == 0:
            first, tokens = _tokens_of(batch, row)
            valid = block * M + m < tokens * HEADS
            place = (first * HEADS + block * M + m).to(gl.int64)
            zeros = gl.zeros([M, 512], out.dtype.element_ty, layout=layout)
            gl.store(out + place[:, None] * 512 + d[None, :], zeros, mask=valid[:, None])
            if lse is not None:
                nothing = gl.full([M], -float("inf"), gl.float32, layout=gl.SliceLayout(1, layout))
                gl.store(lse + place, nothing, mask=valid)


@gluon.jit
def _attend_right(
    batch, run, work, answer, right_kv, gates, hands, empty_rows,
    HEADS: gl.constexpr, STAGES: gl.constexpr, M: gl.constexpr, LAG: gl.constexpr,
):  # fmt: skip
    """The right half of the output, from the weights that `_attend_left` hands over."""
    lane, lanes, total_tiles, block, _ = run
    row, begin, left, context = work
    _, right_full, _, right_free = gates
    weights, fade, logs, scored, ready, taken = hands
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16])
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    step = 0
    turns = 0
    at = lane * total_tiles // lanes
    while left > 0:
        seen_to = context
        tiles = (context + TILE - 1) // TILE
        count = gl.minimum(tiles - begin, left)
        context = _context_of(batch, row + 1)
        first, tokens = _tokens_of(batch, row)
        if (block * M < tokens * HEADS) & (count > 0):
            acc = gl.zeros([M, HALF], gl.float32, layout=o_layout)
            for i in range(count):
                stage = step % STAGES
                mbarrier.wait(right_full.index(stage), (step // STAGES) & 1)
                mbarrier.wait(ready, turns & 1)
                acc = acc * fade.load(o_rows)[:, None]
                key = (begin + i) * TILE
                if key + TILE > seen_to:
                    _clear_tail(right_kv.index(stage), seen_to - key)
                if LAG:  # noqa: SIM102
                    if i + 1 < count:
                        mbarrier.wait(scored, (step + 1) & 1)
                acc = warpgroup_mma(weights, right_kv.index(stage), acc, is_async=True)
                acc = warpgroup_mma_wait(0, deps=[acc])
                mbarrier.arrive(taken)
                mbarrier.arrive(right_free.index(stage))
                turns += 1
                step += 1
            mbarrier.wait(ready, turns & 1)
            inverse = fade.load(o_rows)
            log_sum = logs.load(o_rows)
            mbarrier.arrive(taken)
            turns += 1
            _store_half(
                answer, run, acc, inverse, log_sum, at - begin, tiles, first, tokens, 1, HEADS, M, o_layout
            )
        at += count
        left -= count
        row += 1
        begin = 0
    _settle(answer, batch, run, work, 1, HEADS, M)
    if gl.load(empty_rows) > 0:
        _clear_empty(answer, batch, run, HEADS, M)


@gluon.jit
def _merge(
    answer, run, opened, closed, first, tokens, half: gl.constexpr,
    HEADS: gl.constexpr, M: gl.constexpr, PARTS: gl.constexpr, ROWS: gl.constexpr, COLUMNS: gl.constexpr,
):  # fmt: skip
    """Merge this lane's share of a shared row: every n-th piece of ROWS x COLUMNS, n lanes sharing it."""
    out, lse, sums, stats, _ = answer
    lane, _, _, block, blocks = run
    # No sum crosses warps, save where a piece is narrow: that would take shared memory the tiles hold.
    layout: gl.constexpr = gl.BlockedLayout(
        [1, 1, 2 if ROWS == 1 else 4], [1, 1, 32], [2, 1, 2] if ROWS == 1 else [1, 2, 2], [2, 1, 0]
    )
    of_stats: gl.constexpr = gl.SliceLayout(2, layout)
    of_rows: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(0, layout))
    part = gl.arange(0, PARTS, layout=gl.SliceLayout(1, of_stats))
    r = gl.arange(0, ROWS, layout=gl.SliceLayout(0, of_stats))
    r_out = gl.arange(0, ROWS, layout=of_rows)
    d = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, gl.SliceLayout(0, layout)))
    sharing = closed - opened + 1
    across_row: gl.constexpr = HALF // COLUMNS
    valid = gl.minimum(tokens * HEADS - block * M, M)
    piece = lane - opened
    while piece // across_row * ROWS < valid:
        m, column = piece // across_row * ROWS, piece % across_row * COLUMNS
        peak = gl.full([ROWS], NEVER, gl.float32, layout=gl.SliceLayout(0, of_stats))
        total = gl.zeros([ROWS], gl.float32, layout=gl.SliceLayout(0, of_stats))
        acc = gl.zeros([ROWS, COLUMNS], gl.float32, layout=gl.SliceLayout(0, layout))
        for base in range(0, sharing, PARTS):
            index = opened + base + part
            slot = 2 * index + gl.where(index == opened, 1, 0)
            there = (index <= closed)[:, None] & (m + r < valid)[None, :]
            at = (((2 * slot + half) * blocks + block) * M + m)[:, None] + r[None, :]
            log_sum = gl.load(stats + at, mask=there, other=-float("inf"))
            source = sums + at.to(gl.int64)[:, :, None] * HALF + column + d[None, :][None, :, :]
            values = gl.load(source, mask=there[:, :, None], other=0.0)
            grown = gl.maximum(peak, gl.max(log_sum, 0))
            weight = gl.exp2(log_sum - grown[None, :])
            mine = gl.exp2(peak - grown)
            total = total * mine + gl.sum(weight, 0)
            acc = acc * gl.convert_layout(mine, of_rows)[:, None] + gl.sum(values * weight[:, :, None], 0)
            peak = grown
        log_sum = gl.where(total > 0, peak + gl.log2(total), -float("inf"))
        norm = gl.convert_layout(gl.where(total > 0, total, 1.0), of_rows)
        place = (first * HEADS + block * M + m + r_out).to(gl.int64)
        gl.store(
            out + place[:, None] * (2 * HALF) + half * HALF + column + d[None, :],
            (acc / norm[:, None]).to(out.dtype.element_ty), mask=(m + r_out < valid)[:, None],
        )  # fmt: skip
        if lse is not None:  # noqa: SIM102
            if half == 0:  # noqa: SIM102
                if column == 0:
                    gl.store(lse + first * HEADS + block * M + m + r, log_sum * LN_2, mask=m + r < valid)
        piece += sharing


@gluon.jit
def _settle(answer, batch, run, work, half: gl.constexpr, HEADS: gl.constexpr, M: gl.constexpr):
    """Tell of the partials this lane left of the rows it shares, then merge its share of those rows."""
    counts = answer[4]
    lane, lanes, total_tiles, block, blocks = run
    gl.thread_barrier()  # every warp's partials are written before one thread says so
    for merging in gl.static_range(2):
        row_m, begin_m, left_m, context_m = work
        at = lane * total_tiles // lanes
        while left_m > 0:
            tiles = (context_m + TILE - 1) // TILE
            count = gl.minimum(tiles - begin_m, left_m)
            if count < tiles:
                first, tokens = _tokens_of(batch, row_m)
                if block * M < tokens * HEADS:
                    counter = counts + (row_m * blocks + block) * 2 + half
                    opened = _lane_of(at - begin_m, total_tiles, lanes)
                    closed = _lane_of(at - begin_m + tiles - 1, total_tiles, lanes)
                    sharing = closed - opened + 1
                    if merging == 0:
                        gl.atomic_add(counter, 1, sem="release", scope="gpu")
                    else:
                        while gl.atomic_add(counter, 0, sem="acquire", scope="gpu") < sharing:
                            pass
                        if sharing > 16:
                            _merge(answer, run, opened, closed, first, tokens, half, HEADS, M, 64, 1, 128)
                        elif sharing > 4:
                            _merge(answer, run, opened, closed, first, tokens, half, HEADS, M, 16, 2, 256)
                        else:
                            _merge(answer, run, opened, closed, first, tokens, half, HEADS, M, 4, 8, 256)
                        if gl.atomic_add(counter, 1, sem="relaxed", scope="gpu") == 2 * sharing - 1:
                            gl.store(counter, 0)
            context_m = _context_of(batch, row_m + 1)
            at += count
            left_m -= count
            row_m += 1
            begin_m = 0


@gluon.jit(do_not_specialize=["rows", "each"])
def _decode64(
    q_latent, q_rope, arena, latents, ropes, block_table, context_lens, row_starts, order, table_at, records,
    out, lse, sums, stats, counts, rows, each, scale_log2, latent_token, latent_head, rope_token, rope_head,
    table_row, HEADS: gl.constexpr, STAGES: gl.constexpr, M: gl.constexpr, LAG: gl.constexpr,
    AHEAD: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    gdc_wait()
    gdc_launch_dependents()
    blocks = gl.load(records + 7)
    lane, block = gl.program_id(0) // blocks, gl.program_id(0) % blocks
    record = records + lane * 8
    work = gl.load(record), gl.load(record + 1), gl.load(record + 2), gl.load(record + 5)
    run = lane, gl.load(record + 4), gl.load(record + 3), block, blocks
    pages = arena, latents, ropes, block_table, table_row, table_at
    queries = q_latent, q_rope, latent_token, latent_head, rope_token, rope_head, order
    batch = context_lens, row_starts, rows, each
    answer = out, lse, sums, stats, counts

    dtype: gl.constexpr = q_latent.dtype.element_ty
    left_q = gl.allocate_shared_memory(dtype, [M, HALF], latents.layout)
    right_q = gl.allocate_shared_memory(dtype, [M, HALF], latents.layout)
    rope_q = gl.allocate_shared_memory(dtype, [M, ROPE], latents.layout)
    left_kv = gl.allocate_shared_memory(dtype, [STAGES, TILE, HALF], latents.layout)
    right_kv = gl.allocate_shared_memory(dtype, [STAGES, TILE, HALF], latents.layout)
    rope_kv = gl.allocate_shared_memory(dtype, [STAGES, TILE, ROPE], latents.layout)
    weights = gl.allocate_shared_memory(dtype, [M, TILE], latents.layout)
    fade = gl.allocate_shared_memory(gl.float32, [M], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    logs = gl.allocate_shared_memory(gl.float32, [M], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    left_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    right_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    left_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    right_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [4, 1], mbarrier.MBarrierLayout())
    scored, ready, taken = turn.index(0), turn.index(1), turn.index(2)
    for stage in gl.static_range(STAGES):
        mbarrier.init(left_full.index(stage), count=1)
        mbarrier.init(right_full.index(stage), count=1)
        mbarrier.init(left_free.index(stage), count=1)
        mbarrier.init(right_free.index(stage), count=1)
    mbarrier.init(scored, count=1)
    mbarrier.init(ready, count=1)
    mbarrier.init(taken, count=1)
    fence_async_shared()

    # What the compiler spills nothing with; the first partition has what is left of 504.
    RIGHT_REGISTERS: gl.constexpr = 216 if LAG else 208
    held = left_q, right_q, rope_q
    tiles_kv = left_kv, right_kv, rope_kv
    gates = left_full, right_full, left_free, right_free
    hands = weights, fade, logs, scored, ready, taken
    gl.warp_specialize(
        [
            (_attend_left, (
                queries, batch, run, work, answer, held, tiles_kv, gates, hands, scale_log2,
                HEADS, STAGES, M, LAG, CAUSAL,
            )),
            (_attend_right, (
                batch, run, work, answer, right_kv, gates, hands, record + 6, HEADS, STAGES, M, LAG,
            )),
            (_load, (pages, batch, run, work, tiles_kv, gates, HEADS, STAGES, M, AHEAD)),
        ],
        [4, 1],
        [RIGHT_REGISTERS, 40],
    )  # fmt: skip


@triton.jit
def _join(out, lse, shared, shared_lse, place_of, HEADS: tl.constexpr, LATENT: tl.constexpr):
    """Add to a row's own part what its group found in the shared blocks: a program is a head of a row."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    gdc_wait()
    gdc_launch_dependents()
    place = tl.load(place_of + row).to(tl.int64)
    if place >= 0:
        d = tl.arange(0, LATENT)
        own, its = tl.load(lse + row * HEADS + head), tl.load(shared_lse + place * HEADS + head)
        peak = tl.maximum(own, its)
        own, its = tl.exp(own - peak), tl.exp(its - peak)
        at = out + (row * HEADS + head) * LATENT + d
        of_shared = tl.load(shared + (place * HEADS + head) * LATENT + d).to(tl.float32)
        joined = (tl.load(at).to(tl.float32) * own + of_shared * its) / (own + its)
        tl.store(at, joined.to(out.dtype.element_ty))


@dataclass(frozen=True, slots=True)
class Schedules:
    """The lanes of a step in which rows share blocks: of the groups, and of what each row has alone."""

    groups: Tensor
    rows: Tensor


@dataclass(frozen=True, slots=True)
class MLADecode:
    """The op for one layer: `heads` query heads on a GPU of `cores` multiprocessors."""

    heads: int
    cores: int

    def blocks(self, row_tokens_max: int) -> int:
        """Row blocks that hold the folded rows of a row of so many tokens."""
        return -(-row_tokens_max * self.heads // FOLDED)

    def schedule(
        self,
        context_lens: Tensor,
        row_tokens_max: int = 1,
        row_starts: Tensor | None = None,
        shared: SharedBlocks | None = None,
    ) -> Tensor | Schedules:
        """Give every lane its run of key tiles: [programs, 8] int32, for all layers of a step."""
        if shared is None:
            return self._lanes(context_lens, row_tokens_max, row_starts)
        of_groups = self._lanes(shared.context_lens, shared.order.shape[0], shared.row_starts)
        return Schedules(of_groups, self._lanes(shared.own_lens, row_tokens_max, row_starts))

    def _lanes(self, context_lens: Tensor, row_tokens_max: int, row_starts: Tensor | None) -> Tensor:
        rows, blocks = context_lens.shape[0], self.blocks(row_tokens_max)
        resident = min(self.cores, LANES_MOST)  # more do not run at once, and those that share a row must
        programs = max(resident, blocks)
        records = torch.empty((programs, RECORD), dtype=torch.int32, device=context_lens.device)
        _schedule[(1,)](
            context_lens, row_starts, records, rows, blocks, resident, programs, TILES_LEAST, HEADS=self.heads,
            M=FOLDED, ROWS=max(ROWS_LEAST, triton.next_power_of_2(rows)),
            LANES=max(LANES_MOST, triton.next_power_of_2(programs)),
        )  # fmt: skip
        return records

    def __call__(
        self,
        q_latent: Tensor,
        q_rope: Tensor,
        arena: Tensor,
        block_table: Tensor,
        context_lens: Tensor,
        scale: float,
        *,
        row_starts: Tensor | None = None,
        row_tokens_max: int | None = None,
        lse: Tensor | None = None,
        schedule: Tensor | Schedules | None = None,
        shared: SharedBlocks | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Attend in the latent space; without a schedule, make one (a second launch)."""
        tokens, heads, latent = q_latent.shape
        rows = context_lens.shape[0]
        if out is None:
            out = torch.empty((tokens, heads, latent), dtype=q_latent.dtype, device=q_latent.device)
        if not tokens:
            return out
        tokens_max = tokens // rows if row_starts is None else row_tokens_max or tokens
        if schedule is None:
            schedule = self.schedule(context_lens, tokens_max, row_starts, shared)
        queries = q_latent, q_rope
        if shared is None:
            assert isinstance(schedule, Tensor)
            self._attend(
                queries, arena, block_table, context_lens, scale, out,
                row_starts=row_starts, tokens_max=tokens_max, lse=lse, records=schedule,
            )  # fmt: skip
            return out
        assert isinstance(schedule, Schedules)
        assert row_starts is None
        assert tokens == rows
        if lse is None:
            lse = torch.empty((tokens, heads), dtype=torch.float32, device=out.device)
        of_groups, of_groups_lse = torch.empty_like(out), torch.empty_like(lse)
        self._attend(
            queries, arena, block_table, shared.context_lens, scale, of_groups,
            row_starts=shared.row_starts, tokens_max=tokens, lse=of_groups_lse, records=schedule.groups,
            order=shared.order, table_at=shared.table_at, causal=False,
        )  # fmt: skip
        self._attend(
            queries, arena, block_table, shared.own_lens, scale, out,
            row_starts=None, tokens_max=tokens_max, lse=lse, records=schedule.rows, table_at=shared.own_at,
        )  # fmt: skip
        _join[(rows, heads)](
            out, lse, of_groups, of_groups_lse, shared.place_of, heads, latent, num_warps=2, launch_pdl=True
        )
        return out

    def _attend(
        self,
        queries: tuple[Tensor, Tensor],
        arena: Tensor,
        block_table: Tensor,
        context_lens: Tensor,
        scale: float,
        out: Tensor,
        *,
        row_starts: Tensor | None,
        tokens_max: int,
        lse: Tensor | None,
        records: Tensor,
        order: Tensor | None = None,
        table_at: Tensor | None = None,
        causal: bool = True,
    ) -> None:
        q_latent, q_rope = queries
        rows = context_lens.shape[0]
        programs, blocks = records.shape[0], self.blocks(tokens_max)
        if 2 * rows * blocks > COUNTERS:
            raise ValueError(f"{rows} rows in {blocks} row blocks exceed {COUNTERS} counters")
        flat = arena.view(-1, arena.shape[2])
        places = 4 * programs * FOLDED
        sums = torch.empty((places, HALF.value), dtype=torch.float32, device=out.device)
        stats = torch.empty(places, dtype=torch.float32, device=out.device)
        _decode64[(programs,)](
            q_latent, q_rope, arena, TensorDescriptor.from_tensor(flat, [TILE.value, HALF.value], SHARED),
            TensorDescriptor.from_tensor(flat, [TILE.value, ROPE.value], SHARED), block_table, context_lens,
            row_starts, order, table_at, records, out, lse, sums, stats, counters(out.device), rows,
            q_latent.shape[0] // rows, scale * LOG2_E, q_latent.stride(0), q_latent.stride(1), q_rope.stride(0),
            q_rope.stride(1), block_table.stride(0), HEADS=self.heads, STAGES=STAGES, M=FOLDED,
            LAG=blocks >= LAG_BLOCKS, AHEAD=ahead(programs // blocks), CAUSAL=causal, num_warps=4, launch_pdl=True,
        )  # fmt: skip


def ahead(lanes: int) -> int:
    """How many tiles to ask for ahead, so that lanes that walk different rows do not push each other's out."""
    return min(AHEAD_MOST, max(0, TILES_UNDERWAY // lanes - STAGES))


def _build(traits: Traits, device: Device) -> Implementation:
    decode = MLADecode(whole(traits, "heads"), device.cores)
    return Implementation(decode, schedule=decode.schedule, shares=decode.heads < SHARING_HEADS)


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        op="attention.mla_decode",
        name="gluon",
        needs=Needs(sm=(9, 0), dtype=BF16, latent={512}, rope={64}, block_tokens={64}, kv="native"),
        band=Band.TUNED,
        build=_build,
    ),
)

__all__ = ["KERNELS", "MLADecode"]
