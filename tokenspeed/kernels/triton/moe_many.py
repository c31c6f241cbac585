# SPDX-License-Identifier: MIT
"""Experts for many tokens, bound by arithmetic: sort once, two grouped matrix products, one sum.

In: x [T, C], ids [T, k], weights [T, k], stacked experts w13 [E + S, 2F, C] and w2 [E + S, C, F], in 8 bits with
their scales; the last S are shared: every token runs them, with weight one. Out: y [T, C].

    sort     program e: the pairs (token, choice) of expert e, in order          -> order [T k], starts [E + 1]
    gate_up  tiles of one expert's pairs x ffn channels, silu(gate) * up         -> hidden [T (k + S), F], sorted
    down     tiles of one expert's pairs x output channels, times the weight     -> parts [T, k + S, C]
    add      each token's parts in the order of its choices                      -> y

The host knows only how many tiles there can be at most; a program finds its expert and rows from `starts`, and
one beyond the last tile returns at once: no host synchronisation, and nothing depends on how tokens are spread.
Ids outside 0..E-1 are skipped. Everything is written by one program in one order: repeated runs are identical.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from tokenspeed.kernels.triton.moe_few import rows_of
from tokenspeed.kernels.triton.moe_weights import Stacked, blocks, or_any

BLOCK = 2048
"""Pairs that a program of the sort looks at together."""
PIECE = 4 * BLOCK
"""Pairs that a program of the sort places."""


@dataclass(frozen=True, slots=True)
class Tile:
    """How a grouped product is cut: pairs, weight rows (of gate and of up each), depth of a stage, stages in
    flight, warps, and how many tiles of pairs take turns on one block of weights."""

    pairs: int
    rows: int
    depth: int
    stages: int
    warps: int
    group: int = 8


@triton.jit(do_not_specialize=["pairs", "piece"])
def _sort(ids, order, starts, pairs, piece, E: tl.constexpr, BLOCK: tl.constexpr):
    # Program (e, p) places the pairs of expert e that lie in piece p: behind those of lower experts, and its own
    # in earlier pieces.
    expert = tl.program_id(0)
    begin = tl.program_id(1) * piece
    lane = tl.arange(0, BLOCK)
    before = tl.zeros([BLOCK], tl.int32)
    for first in range(0, pairs, BLOCK):
        at = first + lane
        id = tl.load(ids + at, at < pairs, -1)
        before += ((id >= 0) & ((id < expert) | ((id == expert) & (at < begin)))).to(tl.int32)
    place = tl.sum(before, 0)
    if begin == 0:
        tl.store(starts + expert, place)
    for first in range(begin, min(begin + piece, pairs), BLOCK):
        at = first + lane
        mine = (tl.load(ids + at, at < pairs, -1) == expert).to(tl.int32)
        tl.store(order + place + tl.cumsum(mine, 0) - 1, at, mine != 0)
        place += tl.sum(mine, 0)
    if (expert == E - 1) & (begin + piece >= pairs):
        tl.store(starts + E, place)


@triton.jit
def _tile_of(starts, program, column_tiles, tokens, E: tl.constexpr, S: tl.constexpr, E_PAD: tl.constexpr,
             PAIRS: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    # Program -> (expert or -1, first pair of the tile, end of the expert's pairs, column tile). Tiles of pairs
    # are numbered expert by expert, GROUP of them share a sweep over the columns.
    expert = tl.arange(0, E_PAD)
    begin = tl.load(starts + expert, expert < E, 0)
    end = tl.load(starts + expert + 1, expert < E, 0)
    routed = tl.max(end, 0)
    shared = (expert >= E) & (expert < E + S)
    begin = tl.where(shared, routed + (expert - E) * tokens, begin)
    end = tl.where(shared, begin + tokens, end)
    tiles = tl.cdiv(end - begin, PAIRS)
    last = tl.cumsum(tiles, 0)
    total = tl.max(last, 0)
    sweep = program // (GROUP * column_tiles)
    wide = tl.minimum(GROUP, total - sweep * GROUP)
    within = program - sweep * GROUP * column_tiles
    tile = sweep * GROUP + within % tl.maximum(wide, 1)
    column = within // tl.maximum(wide, 1)
    which = tl.sum((last <= tile).to(tl.int32), 0)
    here = expert == which
    first = tl.sum(tl.where(here, begin + (tile - (last - tiles)) * PAIRS, 0), 0)
    stop = tl.sum(tl.where(here, end, 0), 0)
    return tl.where(wide > 0, which, -1), first, stop, column


@triton.jit
def _product(activations, weight, total, scale, PRECISION: tl.constexpr, FORMAT: tl.constexpr):
    # total + activations weight^T; the product of a block-scaled weight is scaled before it is added.
    if FORMAT == "int8":
        weight = weight.to(tl.float32)
    if FORMAT == "fp8_block":
        return total + tl.dot(
            activations, weight.to(activations.dtype).T, input_precision=PRECISION
        ) * tl.load(scale)
    return tl.dot(activations, weight.to(activations.dtype).T, total, PRECISION)


@triton.jit(do_not_specialize=["tokens"])
def _gate_up(
    x, x_stride, w13, scale, order, starts, hidden, tokens,
    C: tl.constexpr, F: tl.constexpr, E: tl.constexpr, S: tl.constexpr, TOP: tl.constexpr,
    E_PAD: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
    STAGES: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    expert, first, end, column = _tile_of(
        starts, tl.program_id(0), tl.cdiv(F, ROWS), tokens, E, S, E_PAD, PAIRS, GROUP
    )
    if expert >= 0:
        place = first + tl.arange(0, PAIRS)
        there = place < end
        if expert < E:
            token = tl.load(order + place, there, 0) // TOP
        else:
            token = tl.where(there, tokens - (end - place), 0)
        depth = tl.arange(0, DEPTH)
        source = x + token.to(tl.int64)[:, None] * x_stride + depth[None, :]
        row = expert * (2 * F) + column * ROWS
        blocks: tl.constexpr = (C + 127) // 128
        gate = tl.zeros([PAIRS, ROWS], tl.float32)
        up = tl.zeros([PAIRS, ROWS], tl.float32)
        for k in tl.range(0, C, DEPTH, num_stages=STAGES):
            activations = rows_of(source + k, there, depth, C - k, C % DEPTH == 0)
            of_gate = scale + row // 128 * blocks + k // 128
            gate = _product(activations, w13.load([row, k]), gate, of_gate, PRECISION, FORMAT)
            of_up = scale + (row + F) // 128 * blocks + k // 128
            up = _product(activations, w13.load([row + F, k]), up, of_up, PRECISION, FORMAT)
        channel = column * ROWS + tl.arange(0, ROWS)
        if FORMAT == "int8":
            gate *= tl.load(scale + expert * (2 * F) + channel, channel < F, 0.0)[None, :]
            up *= tl.load(scale + expert * (2 * F) + F + channel, channel < F, 0.0)[None, :]
        result = gate / (1.0 + tl.exp(-gate)) * up
        to = hidden + place.to(tl.int64)[:, None] * F + channel[None, :]
        tl.store(to, result, there[:, None] & (channel < F)[None, :])


@triton.jit(do_not_specialize=["tokens"])
def _down(
    hidden, w2, scale, order, starts, weights, parts, tokens,
    C: tl.constexpr, F: tl.constexpr, E: tl.constexpr, S: tl.constexpr, TOP: tl.constexpr,
    E_PAD: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
    STAGES: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    expert, first, end, column = _tile_of(
        starts, tl.program_id(0), tl.cdiv(C, ROWS), tokens, E, S, E_PAD, PAIRS, GROUP
    )
    if expert >= 0:
        row = expert * C + column * ROWS
        total = tl.zeros([PAIRS, ROWS], tl.float32)
        for k in tl.range(0, F, DEPTH, num_stages=STAGES):
            of_block = scale + (expert * tl.cdiv(C, 128) + column * ROWS // 128) * tl.cdiv(F, 128) + k // 128
            total = _product(hidden.load([first, k]), w2.load([row, k]), total, of_block, PRECISION, FORMAT)
        channel = column * ROWS + tl.arange(0, ROWS)
        if FORMAT == "int8":
            total *= tl.load(scale + expert * C + channel, channel < C, 0.0)[None, :]
        place = first + tl.arange(0, PAIRS)
        there = place < end
        if expert < E:
            pair = tl.load(order + place, there, 0)
            total = total * tl.load(weights + pair, there, 0.0)[:, None]
            to = pair // TOP * (TOP + S) + pair % TOP
        else:
            to = (tokens - (end - place)) * (TOP + S) + TOP + expert - E
        at = parts + to.to(tl.int64)[:, None] * C + channel[None, :]
        tl.store(at, total, there[:, None] & (channel < C)[None, :])


@triton.jit
def _add(
    parts, ids, y, C: tl.constexpr, E: tl.constexpr, S: tl.constexpr, TOP: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < C
    total = tl.zeros([BLOCK], tl.float32)
    for choice in tl.static_range(TOP + S):
        there = inside
        if choice < TOP:
            id = tl.load(ids + token * TOP + choice)
            there = inside & (id >= 0) & (id < E)
        total += tl.load(parts + (token * (TOP + S) + choice) * C + channel, there, 0.0).to(tl.float32)
    tl.store(y + token * C + channel, total, inside)


@dataclass(frozen=True, slots=True)
class Plan:
    """The tiles of both products."""

    up: Tile
    down: Tile


def run(x: Tensor, ids: Tensor, weights: Tensor, w: Stacked, plan: Plan, y: Tensor) -> Tensor:
    """Run tokens through their experts and the shared ones; write and return y."""
    tokens, width = x.shape
    stacked, _, ffn = w.w2.shape
    shared, top = w.shared, ids.shape[1]
    experts = stacked - shared
    pairs, places = tokens * top, tokens * (top + shared)
    order = torch.empty(pairs, dtype=torch.int32, device=x.device)
    starts = torch.empty(experts + 1, dtype=torch.int32, device=x.device)
    hidden = x.new_empty((places, ffn))
    parts = x.new_empty((tokens, top + shared, width))
    sizes: dict[str, Any] = dict(  # noqa: C408
        C=width, F=ffn, E=experts, S=shared, TOP=top, E_PAD=triton.next_power_of_2(stacked),
        PRECISION="ieee" if x.dtype is torch.float32 else "tf32", FORMAT=w.format,
    )  # fmt: skip
    pieces = triton.cdiv(pairs, PIECE)
    _sort[(experts, pieces)](ids, order, starts, pairs, PIECE, experts, BLOCK, num_warps=8)
    up, down = plan.up, plan.down
    _gate_up[(_tiles(tokens, top, experts, shared, up) * triton.cdiv(ffn, up.rows),)](
        x, x.stride(0), blocks(w.w13, up.rows, up.depth), or_any(w.scale13, x), order, starts, hidden, tokens, **sizes,
        PAIRS=up.pairs, ROWS=up.rows, DEPTH=up.depth, STAGES=up.stages, GROUP=up.group, num_warps=up.warps,
    )  # fmt: skip
    _down[(_tiles(tokens, top, experts, shared, down) * triton.cdiv(width, down.rows),)](
        TensorDescriptor.from_tensor(hidden, [down.pairs, down.depth]), blocks(w.w2, down.rows, down.depth),
        or_any(w.scale2, x), order, starts, weights, parts, tokens, **sizes,
        PAIRS=down.pairs, ROWS=down.rows, DEPTH=down.depth, STAGES=down.stages, GROUP=down.group,
        num_warps=down.warps,
    )  # fmt: skip
    block = min(2048, triton.next_power_of_2(width))
    _add[(tokens, triton.cdiv(width, block))](
        parts, ids, y, width, experts, shared, top, block, num_warps=max(1, block // 256)
    )
    return y


def _tiles(tokens: int, top: int, experts: int, shared: int, tile: Tile) -> int:
    """The most tiles of pairs there can be: each chosen expert wastes less than one."""
    chosen = min(experts, tokens * top)
    return (tokens * top - chosen) // tile.pairs + chosen + shared * triton.cdiv(tokens, tile.pairs)
