# SPDX-License-Identifier: MIT
"""Ops `step.*`: both ends of a step, bound by latency. They are part of the graph that holds the step."""

from __future__ import annotations

import torch

from tokenspeed.kernels.api.traits import DTYPE, FP32, ROUNDED, count, dtype_of, whole
from tokenspeed.kernels.draw import Draw
from tokenspeed.kernels.ref import step as ref
from tokenspeed.kernels.spec import Cost, Inputs, Op, Plain, Point, Sizes, Traits

SLOTS = 70
IDS_MAX = 997
ROWS = (Sizes(1), Sizes(2), Sizes(7), Sizes(65))


def settle_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    rows, blocks = sizes.tokens, whole(traits, "blocks")
    ids = draw.integers(0, IDS_MAX, rows)[: rows - rows // 3]
    ids[::2] = -1
    args = {
        "ids": ids,
        "slots": draw.permutation(SLOTS)[:rows].contiguous(),
        "last_tokens": draw.integers(0, IDS_MAX, SLOTS),
        "table": draw.integers(0, 1 << 20, SLOTS, blocks, dtype=torch.int32),
        "block_table": draw.integers(0, 9, rows, blocks - blocks // 4, dtype=torch.int32),
    }
    return Inputs(args=args, mutates=("ids", "block_table"))


SETTLE = Op(
    name="step.settle",
    summary="Put the last token of its slot for each negative id, and gather the rows' block table.",
    shapes=(
        "ids [D] int64 (changed), slots [R] int64 with D <= R, last_tokens [M] int64, table [M, Bmax] int32, "
        "block_table [R, B] int32 contiguous with B <= Bmax (written) -> block_table. Ids belong to the "
        "first D rows."
    ),
    traits=(count("blocks", (40, 3), "blocks of the longest context (Bmax)"),),
    reference=Plain(ref.settle),
    sizes=ROWS,
    points=tuple(Point({"blocks": 2048}, Sizes(rows)) for rows in (1, 16, 64)),
    inputs=settle_inputs,
    tolerance={FP32: ROUNDED[FP32]},
    cost=lambda traits, sizes: Cost(sizes.tokens * (24 + 8 * whole(traits, "blocks")), 0),
)


def greedy_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    rows, vocab = sizes.tokens, whole(traits, "vocab")
    logits = draw.normal(rows, vocab, dtype=dtype_of(traits), scale=3.0)
    logits[0, vocab // 2 :] = logits[0, : vocab - vocab // 2].flip(0)  # equals: the lowest id wins
    if rows > 2:
        logits[1, vocab - 1] = torch.nan
        logits[2] = -torch.inf
    if rows > 5:
        logits[3, 0] = torch.inf
        logits[4, : vocab - 1] = -torch.inf
    args = {
        "logits": logits,
        "slots": draw.permutation(SLOTS)[:rows].contiguous(),
        "last_tokens": draw.integers(0, IDS_MAX, SLOTS),
        "chosen": draw.integers(0, 9, rows, dtype=torch.int32),
    }
    return Inputs(args=args, mutates=("last_tokens", "chosen"))


def greedy_cost(traits: Traits, sizes: Sizes) -> Cost:
    elements = sizes.tokens * whole(traits, "vocab")
    return Cost(elements * dtype_of(traits).itemsize + 20 * sizes.tokens, elements)


GREEDY = Op(
    name="step.greedy",
    summary="Choose each row's likeliest token, the lowest id among equals, and note it as its slot's last.",
    shapes=(
        "logits [S, V] contiguous, slots [S] int64, last_tokens [M] int64 (changed at slots), chosen [S] int32 "
        "(written) -> chosen. A row whose largest logit is not a finite number is at fault: -1 in chosen, "
        "0 in last_tokens. Slots are distinct, but for padding rows, which share one that is never read."
    ),
    traits=(DTYPE, count("vocab", (997, 5000), "ids of the vocabulary (V)")),
    reference=Plain(ref.greedy),
    sizes=ROWS,
    points=tuple(Point({"dtype": FP32, "vocab": 163840}, Sizes(rows)) for rows in (1, 16, 64)),
    inputs=greedy_inputs,
    tolerance=ROUNDED,
    cost=greedy_cost,
)

OPS = (SETTLE, GREEDY)
