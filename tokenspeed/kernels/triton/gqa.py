# SPDX-License-Identifier: MIT
"""Op `attention.gqa_decode` in one launch: split over the context, merged by the last block to arrive.

In: one query token a row, a paged arena, lengths and tables on the device. Out: [R, H, D]. The grid depends on
the device alone, never on lengths: each of its programs counts the key tiles of all rows and kv heads and
takes an equal run of them, so ragged batches balance and a captured graph replays with any lengths.

    tiles   | row 0, head 0 | row 0, head 1 | row 1, head 0          | ...
    shares  |------ 0 ------|------ 1 ------|------ 2 ------|------ 3 ------| ...

The tiles of one (row, kv head) are a unit. A program that holds a whole unit writes its result; a unit that is
cut leaves partial sums in a workspace, and the last of its programs to arrive at the unit's counter adds
them up and puts the counter back to zero. At most one unit is open at either end of a share: two places a
program hold all partials. Rows of length 0 own no tile; their results are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenspeed.kernels.api.traits import BF16, FP32, dtype_of, whole
from tokenspeed.kernels.device import Device
from tokenspeed.kernels.fp8 import Heads
from tokenspeed.kernels.needs import AtLeast, Needs, Traits
from tokenspeed.kernels.spec import Band, Implementation, Kernel
from tokenspeed.kernels.workspace import COUNTERS, counters

LOG2_E = 1.4426950408889634
TILES_LEAST = 2
"""A share of fewer tiles costs more to merge than it saves."""
ROWS_LEAST = 128
"""Rows that a program counts at once, a thread each: one variant of the kernel for all smaller batches."""
MERGED_ELEMENTS = 1 << 13
"""Elements of the partials of one unit that a program holds at once while it merges."""


@triton.jit(do_not_specialize=["rows", "table_row"])
def _decode(
    q,
    k_arena,
    v_arena,
    k_scale,
    v_scale,
    block_table,
    context_lens,
    out,
    sums,
    stats,
    counts,
    rows,
    scale_log2,
    q_row,
    table_row,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    LEAST: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    program = tl.program_id(0)
    m, d = tl.arange(0, M), tl.arange(0, D)
    row_at = tl.arange(0, ROWS)
    lens = tl.load(context_lens + row_at, mask=row_at < rows, other=0)
    tiles = tl.cdiv(lens, TILE) * KV_HEADS
    ends = tl.cumsum(tiles, 0)
    total = tl.sum(tiles, 0)
    share = tl.maximum(tl.cdiv(total, tl.num_programs(0)), LEAST)
    at = program * share
    stop = tl.minimum(at + share, total)
    _clear_empty(context_lens, out, program, rows, KV_HEADS * GROUP, DIM, KV_HEADS * M, D)
    while at < stop:
        row = tl.sum((ends <= at).to(tl.int32), 0)
        context = tl.load(context_lens + row)
        unit_tiles = tl.cdiv(context, TILE)
        row_first = tl.sum(tl.where(row_at < row, tiles, 0), 0)
        head = (at - row_first) // unit_tiles
        first = row_first + head * unit_tiles
        last = first + unit_tiles
        till = tl.minimum(stop, last)
        held = (m < GROUP)[:, None] & (d < DIM)[None, :]
        head_at = (head * GROUP + m)[:, None] * DIM + d[None, :]
        query = tl.load(q + row.to(tl.int64) * q_row + head_at, mask=held, other=0.0)
        top, norm, acc = _attend(
            query, k_arena, v_arena, k_scale, v_scale, block_table + row * table_row, head, context,
            (at - first) * TILE, tl.minimum((till - first) * TILE, context), scale_log2,
            KV_HEADS, DIM, BLOCK_TOKENS, M, D, TILE, PRECISION,
        )  # fmt: skip
        result = out + row.to(tl.int64) * (KV_HEADS * GROUP * DIM)
        if (at == first) & (till == last):
            tl.store(result + head_at, (acc / norm[:, None]).to(out.dtype.element_ty), mask=held)
        else:
            place = (program * 2 + (at == first).to(tl.int32)) * GROUP
            tl.store(stats + (place + m) * 2, top, mask=m < GROUP)
            tl.store(stats + (place + m) * 2 + 1, norm, mask=m < GROUP)
            tl.store(sums + (place + m)[:, None] * DIM + d[None, :], acc, mask=held)
            opened, closed = first // share, (last - 1) // share
            tl.debug_barrier()  # every warp's partial sums are written before one thread says so
            unit = row * KV_HEADS + head
            if tl.atomic_add(counts + unit, 1, sem="acq_rel", scope="gpu") == closed - opened:
                tl.store(counts + unit, 0)
                _merge(sums, stats, result + head * GROUP * DIM, opened, closed, GROUP, DIM, D, PARTS)
        at = till


@triton.jit
def _clear_empty(
    context_lens, out, program, rows, HEADS: tl.constexpr, DIM: tl.constexpr, H: tl.constexpr, D: tl.constexpr
):
    """Write zeros for the rows without context, each by one program."""
    for row in range(program, rows, tl.num_programs(0)):
        if tl.load(context_lens + row) == 0:
            h, d = tl.arange(0, H), tl.arange(0, D)
            place = row * (HEADS * DIM) + h[:, None] * DIM + d[None, :]
            zeros = tl.zeros([H, D], out.dtype.element_ty)
            tl.store(out + place, zeros, mask=(h < HEADS)[:, None] & (d < DIM)[None, :])


@triton.jit
def _attend(
    query, k_arena, v_arena, k_scale, v_scale, table, head, context, begin, end, scale_log2,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_TOKENS: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
    TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum over the keys [begin, end) of one kv head: maximum [M] in log2 units, norm [M], sum [M, D]."""
    n, d = tl.arange(0, TILE), tl.arange(0, D)
    top = tl.full([M], -float("inf"), tl.float32)
    norm = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    for key in range(begin, end, TILE):
        seen = key + n < context
        if BLOCK_TOKENS % TILE == 0:
            block = tl.load(table + key // BLOCK_TOKENS).to(tl.int64)
            token = block * BLOCK_TOKENS + key % BLOCK_TOKENS + n
        else:
            block = tl.load(table + (key + n) // BLOCK_TOKENS, mask=seen, other=0).to(tl.int64)
            token = block * BLOCK_TOKENS + (key + n) % BLOCK_TOKENS
        place = (token * KV_HEADS + head)[:, None] * DIM + d[None, :]
        there = seen[:, None] & (d < DIM)[None, :]
        k = tl.load(k_arena + place, mask=there, other=0.0)
        v = tl.load(v_arena + place, mask=there, other=0.0)
        if k_scale is not None:
            k_by = tl.load(k_scale + token * KV_HEADS + head, mask=seen, other=1.0)
            v_by = tl.load(v_scale + token * KV_HEADS + head, mask=seen, other=1.0)
            k, v = k.to(query.dtype), v.to(query.dtype)
        scores = tl.dot(query, tl.trans(k), input_precision=PRECISION) * scale_log2
        if k_scale is not None:  # a value's scale in the exponent: weights stay in [0, 1]
            scores = scores * k_by[None, :] + tl.log2(v_by)[None, :]
        scores = tl.where(seen[None, :], scores, -float("inf"))
        raised = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - raised[:, None])
        fade = tl.exp2(top - raised)
        if k_scale is None:
            norm = norm * fade + tl.sum(weights, 1)
        else:
            norm = norm * fade + tl.sum(weights / v_by[None, :], 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
        top = raised
    return top, norm, acc


@triton.jit
def _merge(
    sums, stats, result, opened, closed, GROUP: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Add up the partials of the programs opened..closed and write the unit's heads [GROUP, DIM]."""
    G: tl.constexpr = triton.next_power_of_2(GROUP)
    part, g, d = tl.arange(0, PARTS), tl.arange(0, G), tl.arange(0, D)
    held = (g < GROUP)[:, None] & (d < DIM)[None, :]
    top = tl.full([G], -float("inf"), tl.float32)
    norm = tl.zeros([G], tl.float32)
    acc = tl.zeros([G, D], tl.float32)
    for earliest in range(opened, closed + 1, PARTS):
        program = earliest + part
        place = ((program * 2 + (program == opened).to(tl.int32)) * GROUP)[:, None] + g[None, :]
        there = (program <= closed)[:, None] & (g < GROUP)[None, :]
        tops = tl.load(stats + place * 2, mask=there, other=-float("inf"), cache_modifier=".cg")
        norms = tl.load(stats + place * 2 + 1, mask=there, other=0.0, cache_modifier=".cg")
        parts = tl.load(
            sums + place[:, :, None] * DIM + d[None, None, :],
            mask=there[:, :, None] & (d < DIM)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        raised = tl.maximum(top, tl.max(tops, 0))
        rise = tl.where(g < GROUP, raised, 0.0)
        weights = tl.exp2(tops - rise[None, :])
        fade = tl.exp2(top - rise)
        norm = norm * fade + tl.sum(norms * weights, 0)
        acc = acc * fade[:, None] + tl.sum(parts * weights[:, :, None], 0)
        top = raised
    safe = tl.where(g < GROUP, norm, 1.0)
    place = g[:, None] * DIM + d[None, :]
    tl.store(result + place, (acc / safe[:, None]).to(result.dtype.element_ty), mask=held)


@dataclass(frozen=True, slots=True)
class _Shape:
    heads: int
    kv_heads: int
    head_dim: int
    block_tokens: int


def _gqa_decode(
    q: Tensor,
    k_arena: Tensor | Heads,
    v_arena: Tensor | Heads,
    block_table: Tensor,
    context_lens: Tensor,
    scale: float,
    *,
    out: Tensor | None = None,
    shape: _Shape,
    programs: int,
) -> Tensor:
    """Attend with one query token a row; `programs` share the work."""
    rows = q.shape[0]
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    assert q.stride()[1:] == (shape.head_dim, 1), "want heads dense"
    k, k_scale = k_arena if isinstance(k_arena, Heads) else (k_arena, None)
    v, v_scale = v_arena if isinstance(v_arena, Heads) else (v_arena, None)
    assert all(tensor.is_contiguous() for tensor in (k, v, out)), "want dense arenas and out"
    assert block_table.stride(1) == 1
    assert rows * shape.kv_heads <= COUNTERS, f"{rows} rows of {shape.kv_heads} kv heads want a counter each"
    group = shape.heads // shape.kv_heads
    dim = triton.next_power_of_2(max(shape.head_dim, 16))
    sums = torch.empty((programs, 2, group, shape.head_dim), dtype=torch.float32, device=q.device)
    stats = torch.empty((programs, 2, group, 2), dtype=torch.float32, device=q.device)
    _decode[(programs,)](
        q, k, v, k_scale, v_scale, block_table, context_lens, out, sums, stats, counters(q.device), rows,
        scale * LOG2_E, q.stride(0), block_table.stride(0),
        KV_HEADS=shape.kv_heads,
        GROUP=group,
        DIM=shape.head_dim,
        BLOCK_TOKENS=shape.block_tokens,
        ROWS=triton.next_power_of_2(max(rows, ROWS_LEAST)),
        M=max(16, triton.next_power_of_2(group)),
        D=dim,
        TILE=64 if q.dtype is not FP32 else 32,
        LEAST=TILES_LEAST,
        PARTS=max(1, MERGED_ELEMENTS // (triton.next_power_of_2(group) * dim)),
        PRECISION="ieee",
        num_warps=4,
        num_stages=3,
    )  # fmt: skip
    return out


def _build(traits: Traits, device: Device) -> Implementation:
    shape = _Shape(*(whole(traits, name) for name in ("heads", "kv_heads", "head_dim", "block_tokens")))
    stage_bytes = 64 * 2 * shape.head_dim * dtype_of(traits).itemsize
    resident = max(1, min(2, (64 << 10) // stage_bytes))
    call: Any = partial(_gqa_decode, shape=shape, programs=device.cores * resident)
    return Implementation(call)


KERNELS = (
    Kernel(
        "attention.gqa_decode",
        "triton",
        Needs(sm=AtLeast((8, 0)), dtype={BF16, FP32, torch.float16}, kv="native"),
        Band.FAST,
        _build,
    ),
    Kernel(
        "attention.gqa_decode",
        "triton_fp8",
        Needs(sm=AtLeast((8, 9)), dtype={BF16, FP32, torch.float16}, kv="fp8"),
        Band.FAST,
        _build,
    ),
)
"""What `kernels.triton` gathers."""
