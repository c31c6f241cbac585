# SPDX-License-Identifier: MIT
"""Experts in block-scaled 8 bits for few tokens: two launches, bound by half the bytes of `moe_few`.

In and out as in `moe_few`, whose programs these are but for their products. Weights [E + S, .., ..] are e4m3 with a
float32 scale per 128 x 128. Nothing is rounded but activations, to float16: e4m3 becomes float16 by one
instruction a pair, bfloat16 would take two more.

Why another file: converted weights cannot be an operand that lies in shared memory without being written back
there, which costs more than it saves (docs/log/0004: no gain at all but at 16 tokens). So tokens are on the short
side of the smaller matrix product (`mma.sync`), which takes both operands from registers: a weight goes from
shared memory to a register as 8 bits, four neighbours to a thread, and is converted there.

That product has tiles of 16 tokens and is slower, so tokens that did not choose the expert are left out here
instead of masked: `SLOTS` of those that did at a time, and another sweep (from the second-level cache) where there
are more.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tokenspeed.kernels.triton.launch import early
from tokenspeed.kernels.triton.moe_few import Plan, Tile, add_parts, expert_of, places_of
from tokenspeed.kernels.triton.moe_weights import Stacked, blocks
from tokenspeed.kernels.workspace import COUNTERS, counters

DEPTH = 128
"""Channels of a step: those of a scale."""
ONE = False
"""Whether one token goes without the matrix unit: not seen on a GPU yet."""
ONE_ELEMENTS = 16384
"""Of weights, that a block of four warps holds in registers."""
HALF_MAX = tl.constexpr(65504.0)


@triton.jit
def half(x):
    """Round to float16, what is too large to the largest."""
    return tl.minimum(tl.maximum(x.to(tl.float32), -HALF_MAX), HALF_MAX).to(tl.float16)


@triton.jit
def scaled_product(activations, weight, scale, total):
    """total [SLOTS, ROWS] plus activations [SLOTS, 128] times weight [ROWS, 128] in e4m3, scaled."""
    return total + tl.dot(activations, tl.trans(weight.to(tl.float16))) * tl.load(scale)


@triton.jit
def _slots(place, first, TOKENS: tl.constexpr, SLOTS: tl.constexpr):
    # The tokens [SLOTS] that hold ranks first.. among those with a place, and whether there is one.
    token = tl.arange(0, TOKENS)
    chose = (place >= 0).to(tl.int32)
    rank = tl.cumsum(chose, 0) - 1
    slot = first + tl.arange(0, SLOTS)
    mine = (chose != 0)[None, :] & (rank[None, :] == slot[:, None])
    return tl.sum(tl.where(mine, token[None, :], 0), 1), slot < tl.sum(chose, 0)


@triton.jit
def _place_of(ids, expert, token, there, E: tl.constexpr, TOP: tl.constexpr, TOP_PAD: tl.constexpr):
    # Which of its choices the expert is to each of these tokens.
    choice = tl.arange(0, TOP_PAD)
    chosen = tl.load(
        ids + token[:, None] * TOP + choice[None, :], there[:, None] & (choice < TOP)[None, :], -1
    )
    place = tl.max(tl.where(chosen == expert, choice[None, :], -1), 1)
    return tl.where(expert >= E, TOP + expert - E, place)


@triton.jit(do_not_specialize=["tokens"])
def _gate_up_fp8(
    x, x_stride, ids, w13, scale, hidden, tokens,
    C: tl.constexpr, F: tl.constexpr, E: tl.constexpr, S: tl.constexpr, TOP: tl.constexpr,
    SINGLE: tl.constexpr, E_PAD: tl.constexpr, PAIRS_PAD: tl.constexpr, TOP_PAD: tl.constexpr,
    TOKENS: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1)
    row = tl.program_id(0) * ROWS
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    expert = expert_of(ids, n, tokens, E, S, TOP, SINGLE, E_PAD, PAIRS_PAD)
    if expert >= 0:
        places = places_of(ids, expert, tokens, E, TOP, TOP_PAD, TOKENS)
        chose = tl.sum((places >= 0).to(tl.int32), 0)
        depth = tl.arange(0, DEPTH)
        gate_row = expert * (2 * F) + row
        of_gate = scale + gate_row // 128 * tl.cdiv(C, 128)
        of_up = scale + (gate_row + F) // 128 * tl.cdiv(C, 128)
        channel = row + tl.arange(0, ROWS)
        first = tl.zeros((), tl.int32)
        while first < chose:
            token, there = _slots(places, first, TOKENS, SLOTS)
            source = x + token[:, None] * x_stride + depth[None, :]
            gate = tl.zeros([SLOTS, ROWS], tl.float32)
            up = tl.zeros([SLOTS, ROWS], tl.float32)
            for k in tl.range(0, C, DEPTH, num_stages=STAGES):
                inside = there[:, None] if C % DEPTH == 0 else there[:, None] & (depth < C - k)[None, :]
                activations = tl.load(source + k, inside, 0.0).to(tl.float16)
                gate = scaled_product(activations, w13.load([gate_row, k]), of_gate + k // 128, gate)
                up = scaled_product(activations, w13.load([gate_row + F, k]), of_up + k // 128, up)
            place = _place_of(ids, expert, token, there, E, TOP, TOP_PAD)
            result = half(gate / (1.0 + tl.exp(-gate)) * up)
            to = hidden + (token * (TOP + S) + place)[:, None] * F + channel[None, :]
            tl.store(to, result, there[:, None] & (channel < F)[None, :])
            first += SLOTS


@triton.jit(do_not_specialize=["tokens"])
def _down_fp8(
    hidden, ids, weights, w2, scale, parts, y, counters, tokens,
    C: tl.constexpr, F: tl.constexpr, E: tl.constexpr, S: tl.constexpr, TOP: tl.constexpr,
    SINGLE: tl.constexpr, E_PAD: tl.constexpr, PAIRS_PAD: tl.constexpr, TOP_PAD: tl.constexpr,
    TOKENS: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1)
    block = tl.program_id(0)
    row = block * ROWS
    expert = expert_of(ids, n, tokens, E, S, TOP, SINGLE, E_PAD, PAIRS_PAD)
    places = places_of(ids, expert, tokens, E, TOP, TOP_PAD, TOKENS)
    if EARLY:
        gdc_wait()
    channel = row + tl.arange(0, ROWS)
    if expert >= 0:
        chose = tl.sum((places >= 0).to(tl.int32), 0)
        depth = tl.arange(0, DEPTH)
        of_block = scale + (expert * tl.cdiv(C, 128) + row // 128) * tl.cdiv(F, 128)
        first = tl.zeros((), tl.int32)
        while first < chose:
            token, there = _slots(places, first, TOKENS, SLOTS)
            place = _place_of(ids, expert, token, there, E, TOP, TOP_PAD)
            pair = token * (TOP + S) + place
            source = hidden + pair[:, None] * F + depth[None, :]
            total = tl.zeros([SLOTS, ROWS], tl.float32)
            for k in tl.range(0, F, DEPTH, num_stages=STAGES):
                activations = tl.load(source + k, there[:, None], 0.0)
                total = scaled_product(
                    activations, w2.load([expert * C + row, k]), of_block + k // 128, total
                )
            routed = there & (place < TOP)
            total = total * tl.load(weights + token * TOP + place, routed, 1.0)[:, None]
            mask = there[:, None] & (channel < C)[None, :]
            tl.store(parts + pair[:, None] * C + channel[None, :], total, mask)
            first += SLOTS
    tl.debug_barrier()
    arrived = tl.atomic_add(counters + block, 1, sem="acq_rel")
    if arrived == tl.num_programs(1) - 1:
        tl.store(counters + block, 0)
        add_parts(parts, ids, y, channel, tokens, C, E, S, TOP)


@triton.jit
def _chosen(ids, choice, E: tl.constexpr, TOP):
    """The expert that is a choice of the only token: routed, or a shared one; -1 for none."""
    if choice < TOP:
        expert = tl.load(ids + choice)
        expert = tl.where(expert < E, expert, -1)
    else:
        expert = tl.full((), E + choice - TOP, tl.int32)
    return expert


@triton.jit
def _scaled_sum(weight, value, by, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """Sums [ROWS] of weight [ROWS, DEPTH] times value [DEPTH], each 128 of them times its scale `by`."""
    product = weight.to(tl.float32) * value[None, :]
    parts = tl.sum(tl.reshape(product, (ROWS, DEPTH // 128, 128)), 2)
    return tl.sum(parts * by[None, :], 1)


@triton.jit
def _gate_up_one(
    x, ids, w13, scale, hidden, C: tl.constexpr, F: tl.constexpr, E: tl.constexpr, TOP: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """`ROWS` channels of the hidden vector of one token in its n-th expert."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    n = tl.program_id(1)
    row = tl.program_id(0) * ROWS
    channel = row + tl.arange(0, ROWS)
    depth = tl.arange(0, DEPTH)
    expert = E + n - TOP
    if n < TOP:
        expert = _chosen(ids, n, E, n + 1)
    if expert >= 0:
        blocks: tl.constexpr = (C + 127) // 128
        gate_row = expert * (2 * F) + row
        at = w13 + (expert.to(tl.int64) * (2 * F) + channel)[:, None] * C + depth[None, :]
        inside = (channel < F)[:, None] & (depth < C)[None, :]
        gate = tl.load(at, inside, 0.0)
        up = tl.load(at + F * C, inside, 0.0)
        block = tl.arange(0, DEPTH // 128)
        of_gate = tl.load(scale + gate_row // 128 * blocks + block, block < blocks, 0.0)
        of_up = tl.load(scale + (gate_row + F) // 128 * blocks + block, block < blocks, 0.0)
        value = tl.load(x + depth, depth < C, 0.0).to(tl.float32)
        gate_sum = _scaled_sum(gate, value, of_gate, ROWS, DEPTH)
        up_sum = _scaled_sum(up, value, of_up, ROWS, DEPTH)
        result = half(gate_sum / (1.0 + tl.exp(-gate_sum)) * up_sum)
        tl.store(hidden + n * F + channel, result, channel < F)


@triton.jit
def _down_one(
    hidden, ids, weights, w2, scale, y, C: tl.constexpr, F: tl.constexpr, E: tl.constexpr, TOP: tl.constexpr,
    CHOICES: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """`ROWS` channels of one token over all of its experts, whose weights are asked for before hidden is there."""
    row = tl.program_id(0) * ROWS
    channel = row + tl.arange(0, ROWS)
    depth = tl.arange(0, DEPTH)
    inside = (channel < C)[:, None] & (depth < F)[None, :]
    blocks: tl.constexpr = (F + 127) // 128
    block = tl.arange(0, DEPTH // 128)
    held = ()
    for choice in tl.static_range(CHOICES):
        expert = _chosen(ids, choice, E, TOP)
        at = w2 + (expert.to(tl.int64) * C + channel)[:, None] * F + depth[None, :]
        weight = tl.load(at, inside & (expert >= 0), 0.0)
        first = (expert * ((C + 127) // 128) + row // 128) * blocks
        by = tl.load(scale + first + block, (block < blocks) & (expert >= 0), 0.0)
        held = held + ((weight, by),)  # noqa: RUF005 - the compiler adds tuples and knows no star
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    total = tl.zeros([ROWS], tl.float32)
    for choice in tl.static_range(CHOICES):
        weight, by = held[choice]
        there = (depth < F) & (_chosen(ids, choice, E, TOP) >= 0)
        value = tl.load(hidden + choice * F + depth, there, 0.0).to(tl.float32)
        if choice < TOP:
            by *= tl.load(weights + choice)
        total += _scaled_sum(weight, value, by, ROWS, DEPTH)
    tl.store(y + channel, total, channel < C)


def run_one(x: Tensor, ids: Tensor, weights: Tensor, w: Stacked, y: Tensor) -> Tensor:
    """Run one token, without the matrix unit: every byte of a block's weights is under way at once."""
    width, top = x.shape[1], ids.shape[1]
    stacked, _, ffn = w.w2.shape
    choices = top + w.shared
    hidden = x.new_empty((choices, ffn), dtype=torch.float16)
    ahead = early(x.device)
    deep, inner = (max(128, triton.next_power_of_2(size)) for size in (width, ffn))
    up_rows = min(128, max(1, ONE_ELEMENTS // (2 * deep)))
    down_rows = min(128, max(1, ONE_ELEMENTS // (choices * inner)))
    _gate_up_one[(triton.cdiv(ffn, up_rows), choices)](
        x, ids, w.w13, w.scale13, hidden, width, ffn, stacked - w.shared, top, up_rows, deep, ahead, num_warps=4,
        launch_pdl=ahead,
    )  # fmt: skip
    _down_one[(triton.cdiv(width, down_rows),)](
        hidden, ids, weights, w.w2, w.scale2, y, width, ffn, stacked - w.shared, top, choices, down_rows, inner,
        ahead, num_warps=4, launch_pdl=ahead,
    )  # fmt: skip
    return y


def plan_of(tokens: int) -> Plan:
    """The tiles that were fastest on an H200 for 64 experts of 1408 x 2048, six a token (docs/log/0009)."""
    if tokens <= 2 or tokens > 32:
        tile = Tile(128, DEPTH, 3, 4)
    else:
        tile = Tile(128, DEPTH, 3, 2) if tokens <= 16 else Tile(64, DEPTH, 3, 2)
    return Plan(tile, tile)


def run(x: Tensor, ids: Tensor, weights: Tensor, w: Stacked, plan: Plan, y: Tensor) -> Tensor:
    """Run T <= moe_few.TOKENS_MAX tokens through their experts and the shared ones; write and return y."""
    tokens, width = x.shape
    if tokens == 1 and ONE:
        return run_one(x, ids, weights, w, y)
    stacked, _, ffn = w.w2.shape
    shared, top = w.shared, ids.shape[1]
    experts = stacked - shared
    hidden = x.new_empty((tokens, top + shared, ffn), dtype=torch.float16)
    parts = x.new_empty((tokens, top + shared, width), dtype=torch.float32)
    tile = max(16, triton.next_power_of_2(tokens))
    sizes: dict[str, Any] = dict(  # noqa: C408
        C=width, F=ffn, E=experts, S=shared, TOP=top, SINGLE=tokens == 1, TOKENS=tile,
        SLOTS=16 if tokens <= 32 else 32, E_PAD=triton.next_power_of_2(experts),
        TOP_PAD=triton.next_power_of_2(top), PAIRS_PAD=tile * triton.next_power_of_2(top), DEPTH=DEPTH,
    )  # fmt: skip
    ahead = early(x.device)
    launch = {"launch_pdl": True} if ahead else {}
    runs = shared + min(tokens * top, experts)
    up, down = plan.up, plan.down
    assert triton.cdiv(width, down.rows) <= COUNTERS
    assert w.scale13 is not None
    assert w.scale2 is not None
    _gate_up_fp8[(triton.cdiv(ffn, up.rows), runs)](
        x, x.stride(0), ids, blocks(w.w13, up.rows, DEPTH), w.scale13, hidden, tokens, **sizes, ROWS=up.rows,
        STAGES=up.stages, EARLY=ahead, num_warps=up.warps, **launch,
    )  # fmt: skip
    _down_fp8[(triton.cdiv(width, down.rows), runs)](
        hidden, ids, weights, blocks(w.w2, down.rows, DEPTH), w.scale2, parts, y, counters(x.device), tokens,
        **sizes, ROWS=down.rows, STAGES=down.stages, EARLY=ahead, num_warps=down.warps, **launch,
    )  # fmt: skip
    return y
