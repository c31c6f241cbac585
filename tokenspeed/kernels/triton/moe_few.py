# SPDX-License-Identifier: MIT
"""Experts for few tokens, bound by the bytes of the weights that were chosen: two launches.

In: x [T, C], ids [T, k], weights [T, k], stacked experts w13 [E + S, 2F, C] and w2 [E + S, C, F], in 8 bits with
their scales; the last S are shared: every token runs them, with weight one. Out: y [T, C]. T is at most `TOKENS_MAX`.

    gate_up   program (n, f): the n-th chosen expert, `rows` ffn channels    -> hidden [T, k + S, F]
    down      program (n, c): the same expert, `rows` output channels        -> parts [T, k + S, C] float32,
              the last program of a column block to arrive adds its parts    -> y

Weights lie on the long side of the matrix product and stream through once: the tokens of a tile are all
tokens, those that did not choose the expert are masked, so nothing is sorted. Each program finds its expert
from the ids alone. Parts are added in the order of a token's choices, whatever order programs arrive in:
repeated runs are identical, and a token's result does not depend on the other tokens.

The second launch may start while the first drains (programmatic dependent launch): it finds its expert, then waits
for what the first makes. It reads ids before it waits, which is right because the first lets it start only after
waiting for them itself. Ids outside 0..E-1 are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tokenspeed.kernels.triton.launch import early
from tokenspeed.kernels.triton.moe_weights import Stacked, blocks, or_any
from tokenspeed.kernels.workspace import COUNTERS, counters

TOKENS_MAX = 64


@dataclass(frozen=True, slots=True)
class Tile:
    """How one of the two products is cut: weight rows and depth of a stage, stages in flight, warps."""

    rows: int
    depth: int
    stages: int
    warps: int


@triton.jit
def _nth_chosen(ids, n, pairs, E: tl.constexpr, E_PAD: tl.constexpr, PAIRS_PAD: tl.constexpr):
    # The n-th expert, in order of ids, among those that some token chose; -1 when fewer are chosen.
    at = tl.arange(0, PAIRS_PAD)
    chosen = tl.load(ids + at, at < pairs, -1)
    counts = tl.histogram(chosen, E_PAD, (chosen >= 0) & (chosen < E))
    present = (counts > 0).to(tl.int32)
    rank = tl.cumsum(present, 0)
    expert = tl.arange(0, E_PAD)
    return tl.sum(tl.where((present != 0) & (rank == n + 1), expert + 1, 0), 0) - 1


@triton.jit
def expert_of(
    ids, n, tokens, E: tl.constexpr, S: tl.constexpr, TOP: tl.constexpr, SINGLE: tl.constexpr,
    E_PAD: tl.constexpr, PAIRS_PAD: tl.constexpr,
):  # fmt: skip
    # Programs 0..S-1 run the shared experts, the others the chosen ones; -1 or >= E + S: nothing to run.
    if n < S:
        expert = E + n
    elif SINGLE:
        expert = tl.load(ids + n - S)
        expert = tl.where(expert < E, expert, -1)
    else:
        expert = _nth_chosen(ids, n - S, tokens * TOP, E, E_PAD, PAIRS_PAD)
    return expert


@triton.jit
def places_of(
    ids, expert, tokens, E: tl.constexpr, TOP: tl.constexpr, TOP_PAD: tl.constexpr, TOKENS: tl.constexpr
):
    # Which of its choices the expert is to each token; -1 where the token did not choose it.
    token = tl.arange(0, TOKENS)
    choice = tl.arange(0, TOP_PAD)
    mask = (token < tokens)[:, None] & (choice < TOP)[None, :]
    chosen = tl.load(ids + token[:, None] * TOP + choice[None, :], mask, -1)
    place = tl.max(tl.where(chosen == expert, choice[None, :], -1), 1)
    shared = tl.where(token < tokens, TOP + expert - E, -1)
    return tl.where(expert >= E, shared, place)


@triton.jit
def product(weight, activations, total, scale, PRECISION: tl.constexpr, FORMAT: tl.constexpr):
    """Return total + weight activations; the product of a block-scaled weight is scaled before it is added."""
    if FORMAT == "int8":
        weight = weight.to(tl.float32)
    if FORMAT == "fp8_block":
        return total + tl.dot(weight.to(activations.dtype), activations, input_precision=PRECISION) * tl.load(
            scale
        )
    return tl.dot(weight.to(activations.dtype), activations, total, PRECISION)


@triton.jit
def rows_of(at, there, depth, left, WHOLE: tl.constexpr):
    # A tile of activations [TOKENS, DEPTH], zero in rows that are not there and past the last channel.
    mask = there[:, None] if WHOLE else there[:, None] & (depth < left)[None, :]
    return tl.load(at, mask, 0.0)


@triton.jit(do_not_specialize=["tokens"])
def _gate_up(
    x, x_stride, ids, w13, scale, hidden, tokens,
    C: tl.constexpr, F: tl.constexpr, E: tl.constexpr, S: tl.constexpr, TOP: tl.constexpr,
    SINGLE: tl.constexpr, E_PAD: tl.constexpr, PAIRS_PAD: tl.constexpr, TOP_PAD: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr, FORMAT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1)
    row = tl.program_id(0) * ROWS
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    expert = expert_of(ids, n, tokens, E, S, TOP, SINGLE, E_PAD, PAIRS_PAD)
    if expert >= 0:
        place = places_of(ids, expert, tokens, E, TOP, TOP_PAD, TOKENS)
        token = tl.arange(0, TOKENS)
        depth = tl.arange(0, DEPTH)
        source = x + token[:, None] * x_stride + depth[None, :]
        gate_row = expert * (2 * F) + row
        blocks: tl.constexpr = (C + 127) // 128
        gate = tl.zeros([ROWS, TOKENS], tl.float32)
        up = tl.zeros([ROWS, TOKENS], tl.float32)
        for k in tl.range(0, C, DEPTH, num_stages=STAGES):
            activations = rows_of(source + k, place >= 0, depth, C - k, C % DEPTH == 0).T
            of_gate = scale + gate_row // 128 * blocks + k // 128
            gate = product(w13.load([gate_row, k]), activations, gate, of_gate, PRECISION, FORMAT)
            of_up = scale + (gate_row + F) // 128 * blocks + k // 128
            up = product(w13.load([gate_row + F, k]), activations, up, of_up, PRECISION, FORMAT)
        channel = row + tl.arange(0, ROWS)
        if FORMAT == "int8":
            gate *= tl.load(scale + expert * (2 * F) + channel, channel < F, 0.0)[:, None]
            up *= tl.load(scale + expert * (2 * F) + F + channel, channel < F, 0.0)[:, None]
        result = gate / (1.0 + tl.exp(-gate)) * up
        to = hidden + (token * (TOP + S) + place)[None, :] * F + channel[:, None]
        tl.store(to, result, (place >= 0)[None, :] & (channel < F)[:, None])


@triton.jit
def add_parts(
    parts, ids, y, channel, tokens, C: tl.constexpr, E: tl.constexpr, S: tl.constexpr, TOP: tl.constexpr
):
    # Every token's sum over its choices, in their order, of these channels; a few tokens at a time.
    for begin in range(0, tokens, 16):
        token = begin + tl.arange(0, 16)
        inside = (token < tokens)[:, None] & (channel < C)[None, :]
        total = tl.zeros([16, channel.shape[0]], tl.float32)
        for choice in tl.static_range(TOP + S):
            there = inside
            if choice < TOP:
                id = tl.load(ids + token * TOP + choice, token < tokens, -1)
                there = inside & ((id >= 0) & (id < E))[:, None]
            part = (token * (TOP + S) + choice)[:, None] * C + channel[None, :]
            total += tl.load(parts + part, there, 0.0, cache_modifier=".cg")
        tl.store(y + token[:, None] * C + channel[None, :], total, inside)


@triton.jit(do_not_specialize=["tokens"])
def _down(
    hidden, ids, weights, w2, scale, parts, y, counters, tokens,
    C: tl.constexpr, F: tl.constexpr, E: tl.constexpr, S: tl.constexpr, TOP: tl.constexpr,
    SINGLE: tl.constexpr, E_PAD: tl.constexpr, PAIRS_PAD: tl.constexpr, TOP_PAD: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr, FORMAT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1)
    block = tl.program_id(0)
    row = block * ROWS
    expert = expert_of(ids, n, tokens, E, S, TOP, SINGLE, E_PAD, PAIRS_PAD)
    place = places_of(ids, expert, tokens, E, TOP, TOP_PAD, TOKENS)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.arange(0, TOKENS)
    channel = row + tl.arange(0, ROWS)
    if expert >= 0:
        depth = tl.arange(0, DEPTH)
        pair = token * (TOP + S) + place
        source = hidden + pair[:, None] * F + depth[None, :]
        total = tl.zeros([ROWS, TOKENS], tl.float32)
        for k in tl.range(0, F, DEPTH, num_stages=STAGES):
            activations = rows_of(source + k, place >= 0, depth, F - k, F % DEPTH == 0).T
            of_block = scale + (expert * tl.cdiv(C, 128) + row // 128) * tl.cdiv(F, 128) + k // 128
            total = product(w2.load([expert * C + row, k]), activations, total, of_block, PRECISION, FORMAT)
        if FORMAT == "int8":
            total *= tl.load(scale + expert * C + channel, channel < C, 0.0)[:, None]
        routed = (place >= 0) & (place < TOP)
        total = total * tl.load(weights + token * TOP + place, routed, 1.0)[None, :]
        mask = (place >= 0)[None, :] & (channel < C)[:, None]
        tl.store(parts + pair[None, :] * C + channel[:, None], total, mask)
    tl.debug_barrier()
    arrived = tl.atomic_add(counters + block, 1, sem="acq_rel")
    if arrived == tl.num_programs(1) - 1:
        tl.store(counters + block, 0)
        add_parts(parts, ids, y, channel, tokens, C, E, S, TOP)


@dataclass(frozen=True, slots=True)
class Plan:
    """The tiles of both products."""

    up: Tile
    down: Tile


def run(x: Tensor, ids: Tensor, weights: Tensor, w: Stacked, plan: Plan, y: Tensor) -> Tensor:
    """Run T <= TOKENS_MAX tokens through their experts and the shared ones; write and return y."""
    tokens, width = x.shape
    stacked, _, ffn = w.w2.shape
    shared, top = w.shared, ids.shape[1]
    experts = stacked - shared
    hidden = x.new_empty((tokens, top + shared, ffn))
    parts = x.new_empty((tokens, top + shared, width), dtype=torch.float32)
    tile = max(16, triton.next_power_of_2(tokens))
    sizes: dict[str, Any] = dict(  # noqa: C408
        C=width, F=ffn, E=experts, S=shared, TOP=top, SINGLE=tokens == 1, TOKENS=tile,
        E_PAD=triton.next_power_of_2(experts), TOP_PAD=triton.next_power_of_2(top),
        PAIRS_PAD=tile * triton.next_power_of_2(top),
        PRECISION="ieee" if x.dtype is torch.float32 else "tf32", FORMAT=w.format,
    )  # fmt: skip
    ahead = early(x.device)
    launch = {"launch_pdl": True} if ahead else {}
    runs = shared + min(tokens * top, experts)
    up, down = plan.up, plan.down
    assert triton.cdiv(width, down.rows) <= COUNTERS
    _gate_up[(triton.cdiv(ffn, up.rows), runs)](
        x, x.stride(0), ids, blocks(w.w13, up.rows, up.depth), or_any(w.scale13, x), hidden, tokens, **sizes,
        ROWS=up.rows, DEPTH=up.depth, STAGES=up.stages, EARLY=ahead, num_warps=up.warps, **launch,
    )  # fmt: skip
    _down[(triton.cdiv(width, down.rows), runs)](
        hidden, ids, weights, blocks(w.w2, down.rows, down.depth), or_any(w.scale2, x), parts, y,
        counters(x.device), tokens, **sizes, ROWS=down.rows, DEPTH=down.depth, STAGES=down.stages, EARLY=ahead,
        num_warps=down.warps, **launch,
    )  # fmt: skip
    return y
