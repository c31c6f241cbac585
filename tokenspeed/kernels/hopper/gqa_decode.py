# SPDX-License-Identifier: MIT
"""Op `attention.gqa_decode` for Hopper: one launch, one program a multiprocessor, a deep ring of key tiles.

In, out and the way work is shared are those of `triton.gqa`: the tiles of all (row, kv head) units in one
line, an equal run of them for each program, cut units merged by the last program to arrive. Here one warp
brings the tiles with the bulk copy engine, `STAGES` ahead, across the borders of units, so that the memory
never waits for arithmetic; four warps attend with 16 rows of queries or more (the heads of the group, the
rest padding), which is what the small tensor core instructions take. Barriers are set up while the kernel
before still runs. Bound: 512 bytes of KV a token and kv head.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, mma_v2, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tokenspeed.kernels.api.traits import BF16
from tokenspeed.kernels.device import Device
from tokenspeed.kernels.needs import AtMost, Needs, Traits
from tokenspeed.kernels.spec import Band, Implementation, Kernel
from tokenspeed.kernels.workspace import COUNTERS, counters

LOG2_E: Final = 1.4426950408889634
TILES_LEAST: Final = 2
"""A share of fewer tiles costs more to merge than it saves."""
MERGED_ELEMENTS: Final = 1 << 13
"""Elements of the partials of one unit that a program holds at once while it merges."""
TILE: Final = 128
"""Keys of a tile."""
RING_BYTES: Final = 192 << 10
ROWS_LEAST: Final = 128
"""Rows that a program counts at once, a thread each: one variant of the kernel for all smaller batches."""
LOWEST = gl.constexpr(-1e30)


@gluon.jit
def _added(a, b):
    return a + b


@gluon.jit
def _my_share(
    context_lens, rows, KV_HEADS: gl.constexpr, ROWS: gl.constexpr, TILE: gl.constexpr, LEAST: gl.constexpr
):  # fmt: skip
    """Return this program's first row, its first tile in that row, its tiles, and the tiles of a full share."""
    row_at = gl.arange(0, ROWS, gl.BlockedLayout([1], [32], [4], [0]))
    lens = gl.load(context_lens + row_at, mask=row_at < rows, other=0)
    tiles = gl.cdiv(lens, TILE) * KV_HEADS
    ends = gl.associative_scan(tiles, 0, _added)
    total = gl.sum(tiles, 0)
    share = gl.maximum(gl.cdiv(total, gl.num_programs(0)), LEAST)
    at = gl.program_id(0) * share
    before = ends <= at
    row = gl.sum(before.to(gl.int32), 0)
    begin = at - gl.max(gl.where(before, ends, 0), 0)
    return row, begin, gl.minimum(share, total - at), share


@gluon.jit
def _bring(
    k_arena, v_arena, k_ring, v_ring, full, free, block_table, context_lens, table_row, row, begin, left,
    KV_HEADS: gl.constexpr, BLOCK_TOKENS: gl.constexpr,
):  # fmt: skip
    """Copy this program's tiles into the ring."""
    STAGES: gl.constexpr = k_ring.shape[0]
    TILE: gl.constexpr = k_ring.shape[1]
    DIM: gl.constexpr = k_ring.shape[2]
    BOX: gl.constexpr = k_arena.block_type.shape[0]
    step = 0
    while left > 0:
        context = gl.load(context_lens + row)
        unit = gl.cdiv(context, TILE)
        count = gl.minimum(unit * KV_HEADS - begin, left)
        table = block_table + row.to(gl.int64) * table_row
        last = gl.cdiv(context, BLOCK_TOKENS) - 1
        for i in range(begin, begin + count):
            head, tile = i // unit, i % unit
            stage, parity = step % STAGES, (step // STAGES) & 1
            mbarrier.wait(free.index(stage), parity ^ 1)
            mbarrier.expect(full.index(stage), 2 * TILE * DIM * 2)
            for j in gl.static_range(TILE // BOX):
                token = tile * TILE + j * BOX
                block = gl.load(table + gl.minimum(token // BLOCK_TOKENS, last))
                at = block * BLOCK_TOKENS + token % BLOCK_TOKENS
                k_box = k_ring.index(stage).slice(j * BOX, BOX, 0)
                v_box = v_ring.index(stage).slice(j * BOX, BOX, 0)
                tma.async_copy_global_to_shared(k_arena, [at, head * DIM], full.index(stage), k_box)
                tma.async_copy_global_to_shared(v_arena, [at, head * DIM], full.index(stage), v_box)
            step += 1
        left -= count
        row += 1
        begin = 0


@gluon.jit
def _attend(
    q, out, sums, stats, counts, k_ring, v_ring, full, free, context_lens, q_row, scale_log2, row, begin, left,
    share, KV_HEADS: gl.constexpr, GROUP: gl.constexpr, M: gl.constexpr, PARTS: gl.constexpr,
):  # fmt: skip
    """Attend unit by unit; write what is whole, leave or merge what is cut."""
    STAGES: gl.constexpr = k_ring.shape[0]
    TILE: gl.constexpr = k_ring.shape[1]
    DIM: gl.constexpr = k_ring.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [1, 4], [16, 8])
    rows_layout: gl.constexpr = gl.SliceLayout(1, layout)
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    tile_layout: gl.constexpr = gl.DotOperandLayout(1, layout, 2)
    lanes: gl.constexpr = DIM // 8
    q_layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // lanes, lanes], [4, 1], [1, 0])
    at = gl.program_id(0) * share
    step = 0
    while left > 0:
        context = gl.load(context_lens + row)
        unit = gl.cdiv(context, TILE)
        head = begin // gl.maximum(unit, 1)
        tile = begin - head * unit
        count = gl.minimum(unit - tile, left)
        if count > 0:
            qm = gl.arange(0, M, gl.SliceLayout(1, q_layout))
            qd = gl.arange(0, DIM, gl.SliceLayout(0, q_layout))
            query_at = row.to(gl.int64) * q_row + (head * GROUP + qm)[:, None] * DIM + qd[None, :]
            query = gl.load(q + query_at, mask=(qm < GROUP)[:, None], other=0.0)
            query = gl.convert_layout(query, weights_layout)
            top = gl.full([M], LOWEST, gl.float32, rows_layout)
            norms = gl.zeros([M, TILE], gl.float32, layout)  # added up at the end: warps share the tile
            acc = gl.zeros([M, DIM], gl.float32, layout)
            for i in range(tile, tile + count):
                stage, parity = step % STAGES, (step // STAGES) & 1
                mbarrier.wait(full.index(stage), parity)
                k = k_ring.index(stage).permute((1, 0)).load(tile_layout)
                scores = mma_v2(query, k, gl.zeros([M, TILE], gl.float32, layout)) * scale_log2
                v = v_ring.index(stage).load(tile_layout)
                if i == unit - 1:
                    key = i * TILE + gl.arange(0, TILE, gl.SliceLayout(0, layout))
                    scores = gl.where((key < context)[None, :], scores, LOWEST)
                    value = i * TILE + gl.arange(0, TILE, gl.SliceLayout(1, tile_layout))
                    v = gl.where((value < context)[:, None], v, gl.zeros_like(v))
                mbarrier.arrive(free.index(stage))
                raised = gl.maximum(top, gl.max(scores, 1))
                weights = gl.exp2(scores - raised[:, None])
                fade = gl.exp2(top - raised)
                norms = norms * fade[:, None] + weights
                top = raised
                weights = gl.convert_layout(weights.to(k_ring.dtype), weights_layout)
                acc = mma_v2(weights, v, acc * fade[:, None])
                step += 1
            norm = gl.sum(norms, 1)
            first = at - tile
            opened, closed = first // share, (first + unit - 1) // share
            m = gl.arange(0, M, rows_layout)
            d = gl.arange(0, DIM, gl.SliceLayout(0, layout))
            result = out + (row.to(gl.int64) * KV_HEADS + head) * (GROUP * DIM)
            within = m[:, None] * DIM + d[None, :]
            held = (m < GROUP)[:, None]
            if opened == closed:
                gl.store(result + within, (acc * (1.0 / norm)[:, None]).to(out.dtype.element_ty), mask=held)
            else:
                slot = (gl.program_id(0) * 2 + (tile == 0).to(gl.int32)) * GROUP
                gl.store(stats + (slot + m) * 2, top, mask=m < GROUP)
                gl.store(stats + (slot + m) * 2 + 1, norm, mask=m < GROUP)
                gl.store(sums + slot * DIM + within, acc, mask=held)
                gl.thread_barrier()  # every warp's partial sums are written before one thread says so
                counter = counts + row * KV_HEADS + head
                if gl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == closed - opened:
                    gl.store(counter, 0)
                    _merge(sums, stats, result, opened, closed, GROUP, DIM, PARTS)
        left -= count
        at += count
        begin += count
        if begin >= unit * KV_HEADS:
            row += 1
            begin = 0


@gluon.jit
def _merge(
    sums, stats, result, opened, closed, GROUP: gl.constexpr, DIM: gl.constexpr, PARTS: gl.constexpr
):  # fmt: skip
    """Add up the partials of the programs opened..closed and write the unit's heads [GROUP, DIM]."""
    G: gl.constexpr = triton.next_power_of_2(GROUP)
    lanes: gl.constexpr = DIM // 4
    layout: gl.constexpr = gl.BlockedLayout([1, 1, 4], [32 // lanes, 1, lanes], [4, 1, 1], [2, 1, 0])
    part_g: gl.constexpr = gl.SliceLayout(2, layout)
    g_d: gl.constexpr = gl.SliceLayout(0, layout)
    only_g: gl.constexpr = gl.SliceLayout(1, g_d)
    part = gl.arange(0, PARTS, gl.SliceLayout(1, part_g))
    g = gl.arange(0, G, gl.SliceLayout(0, part_g))
    d = gl.arange(0, DIM, gl.SliceLayout(0, gl.SliceLayout(0, layout)))
    top = gl.full([G], LOWEST, gl.float32, gl.SliceLayout(0, part_g))
    norm = gl.zeros([G], gl.float32, gl.SliceLayout(0, part_g))
    acc = gl.zeros([G, DIM], gl.float32, g_d)
    for earliest in range(opened, closed + 1, PARTS):
        program = earliest + part
        place = ((program * 2 + (program == opened).to(gl.int32)) * GROUP)[:, None] + g[None, :]
        there = (program <= closed)[:, None] & (g < GROUP)[None, :]
        tops = gl.load(stats + place * 2, mask=there, other=LOWEST, cache_modifier=".cg")
        norms = gl.load(stats + place * 2 + 1, mask=there, other=0.0, cache_modifier=".cg")
        at = gl.expand_dims(place, 2) * DIM + gl.expand_dims(gl.expand_dims(d, 0), 0)
        parts = gl.load(sums + at, mask=gl.expand_dims(there, 2), other=0.0, cache_modifier=".cg")
        raised = gl.maximum(top, gl.max(tops, 0))
        weights = gl.exp2(tops - raised[None, :])
        fade = gl.exp2(top - raised)
        norm = norm * fade + gl.sum(norms * weights, 0)
        acc = acc * gl.convert_layout(fade, only_g)[:, None] + gl.sum(parts * gl.expand_dims(weights, 2), 0)
        top = raised
    inverse = gl.convert_layout(1.0 / gl.where(g < GROUP, norm, 1.0), only_g)
    row = gl.arange(0, G, only_g)
    column = gl.arange(0, DIM, gl.SliceLayout(0, g_d))
    value = (acc * inverse[:, None]).to(result.dtype.element_ty)
    gl.store(result + row[:, None] * DIM + column[None, :], value, mask=(row < GROUP)[:, None])


@gluon.jit
def _clear_empty(context_lens, out, rows, WIDTH: gl.constexpr):
    """Write zeros for the rows without context, each by one program."""
    SPAN: gl.constexpr = triton.next_power_of_2(WIDTH)
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    at = gl.arange(0, SPAN, layout)
    for row in range(gl.program_id(0), rows, gl.num_programs(0)):
        if gl.load(context_lens + row) == 0:
            zeros = gl.zeros([SPAN], out.dtype.element_ty, layout)
            gl.store(out + row * WIDTH + at, zeros, mask=at < WIDTH)


@gluon.jit(do_not_specialize=["rows", "table_row"])
def _decode(
    q, k_arena, v_arena, block_table, context_lens, out, sums, stats, counts, rows, scale_log2, q_row,
    table_row,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, DIM: gl.constexpr, BLOCK_TOKENS: gl.constexpr,
    M: gl.constexpr, TILE: gl.constexpr, ROWS: gl.constexpr, STAGES: gl.constexpr, LEAST: gl.constexpr,
    PARTS: gl.constexpr,
):  # fmt: skip
    """k_arena, v_arena: [N P, K DIM] are descriptors of boxes of a page, or of a tile of it."""
    k_ring = gl.allocate_shared_memory(k_arena.dtype, [STAGES, TILE, DIM], k_arena.layout)
    v_ring = gl.allocate_shared_memory(k_arena.dtype, [STAGES, TILE, DIM], k_arena.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(free.index(stage), count=1)
    fence_async_shared()
    gdc_wait()
    gdc_launch_dependents()
    row, begin, left, share = _my_share(context_lens, rows, KV_HEADS, ROWS, TILE, LEAST)
    _clear_empty(context_lens, out, rows, KV_HEADS * GROUP * DIM)
    gl.warp_specialize(
        [
            (_attend, (
                q, out, sums, stats, counts, k_ring, v_ring, full, free, context_lens, q_row, scale_log2, row,
                begin, left, share, gl.constexpr(KV_HEADS), gl.constexpr(GROUP), gl.constexpr(M),
                gl.constexpr(PARTS),
            )),
            (_bring, (
                k_arena, v_arena, k_ring, v_ring, full, free, block_table, context_lens, table_row, row, begin,
                left, gl.constexpr(KV_HEADS), gl.constexpr(BLOCK_TOKENS),
            )),
        ],
        [1],
        [40],
    )  # fmt: skip


def _gqa_decode(
    q: Tensor,
    k_arena: Tensor,
    v_arena: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    scale: float,
    *,
    out: Tensor | None = None,
    programs: int,
) -> Tensor:
    """Attend with one query token a row; `programs` share the work."""
    rows, heads, head_dim = q.shape
    _, block_tokens, kv_heads, _ = k_arena.shape
    group = heads // kv_heads
    lanes = triton.next_power_of_2(group)
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    assert q.stride()[1:] == (head_dim, 1), "want heads dense"
    assert block_table.stride(1) == 1
    assert rows * kv_heads <= COUNTERS, f"{rows} rows of {kv_heads} kv heads want a counter each"
    sums = torch.empty((programs, 2, group, head_dim), dtype=torch.float32, device=q.device)
    stats = torch.empty((programs, 2, group, 2), dtype=torch.float32, device=q.device)
    swizzled = gl.NVMMASharedLayout(128, 16, 2)
    k_boxes, v_boxes = (
        TensorDescriptor(
            arena,
            [arena.shape[0] * block_tokens, kv_heads * head_dim],
            [kv_heads * head_dim, 1],
            [min(block_tokens, TILE), head_dim],
            swizzled,
        )
        for arena in (k_arena, v_arena)
    )
    _decode[(programs,)](
        q, k_boxes, v_boxes, block_table, context_lens, out, sums, stats, counters(q.device), rows,
        scale * LOG2_E, q.stride(0), block_table.stride(0),
        KV_HEADS=kv_heads,
        GROUP=group,
        DIM=head_dim,
        BLOCK_TOKENS=block_tokens,
        M=max(16, lanes),
        TILE=TILE,
        ROWS=triton.next_power_of_2(max(rows, ROWS_LEAST)),
        STAGES=RING_BYTES // (2 * TILE * head_dim * q.element_size()),
        LEAST=TILES_LEAST,
        PARTS=max(1, MERGED_ELEMENTS // (lanes * head_dim)),
        num_warps=4,
        launch_pdl=True,
    )  # fmt: skip
    return out


def _build(_: Traits, device: Device) -> Implementation:
    call: Any = partial(_gqa_decode, programs=device.cores)
    return Implementation(call)


KERNELS = (
    Kernel(
        "attention.gqa_decode",
        "gluon",
        Needs(
            sm=(9, 0),
            dtype={BF16, torch.float16},
            heads=AtMost(64),
            head_dim={64, 128},
            block_tokens={16, 32, 64, 128},
            kv="native",
        ),
        Band.TUNED,
        _build,
    ),
)
"""What `kernels.hopper` gathers."""
