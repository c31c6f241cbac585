# SPDX-License-Identifier: MIT
"""Ops `sampling.*`: what rows that want more than their likeliest logit pay for, bound by the logits' bytes.

A row's wishes are read on the device, by slot, from a table of `settings` (`kernels.settings`), so a step costs
no copy. The spare slot of padding asks for nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenspeed.kernels.api.traits import FP32, ROUNDED, count, whole
from tokenspeed.kernels.draw import Draw
from tokenspeed.kernels.ref import sampling as ref
from tokenspeed.kernels.settings import COLUMNS, Column
from tokenspeed.kernels.spec import Cost, Inputs, Op, Plain, Point, Sizes, Traits

SLOTS, LINES, EDITS, FORCED = 70, 9, 5, 6
ROWS = (Sizes(1), Sizes(2), Sizes(13), Sizes(65))
VOCAB = count("vocab", (997, 5000), "ids of the vocabulary (V)")
TOP_KS = (0, 1, 7, 40, 256, 300, 0, 0)
"""By slot; 0 stands for V."""
TOP_PS = (1.0, 0.9, 0.5, 1.0, 0.99, 0.8, 0.95)
MIN_PS = (0.0, 0.0, 0.05)
TEMPERATURES = (1.0, 0.7, 1.3, 0.0, 0.3)


def _settings(draw: Draw, vocab: int) -> Tensor:
    """Rows of every kind: slot by slot, with periods that have no common factor."""
    table = torch.zeros(SLOTS, COLUMNS, dtype=torch.float64)
    for slot in range(SLOTS):
        row = table[slot]
        row[Column.TEMPERATURE] = TEMPERATURES[slot % len(TEMPERATURES)]
        row[Column.TOP_K] = min(TOP_KS[slot % len(TOP_KS)] or vocab, vocab)
        row[Column.TOP_P] = TOP_PS[slot % len(TOP_PS)]
        row[Column.MIN_P] = MIN_PS[slot % len(MIN_PS)]
        penalised = slot % 4 == 1 and slot // 4 < LINES
        row[Column.PRESENCE], row[Column.FREQUENCY] = (0.5, 0.25) if penalised else (0.0, 0.0)
        row[Column.REPETITION] = 1.25 if penalised else 1.0
        row[Column.LINE] = slot // 4 if penalised else -1
        row[Column.EDITED] = slot % 6 == 3
        row[Column.LATE_FROM] = 50
        row[Column.FORCED_FROM] = 48 if slot % 5 == 2 else -1
    table.view(torch.int64)[:, Column.SEED] = draw.integers(0, 1 << 62, SLOTS).cpu()
    return table.to(draw.device)


def _rows(sizes: Sizes, draw: Draw) -> dict[str, Tensor]:
    return {
        "slots": draw.permutation(SLOTS)[: sizes.tokens].contiguous(),
        "positions": draw.integers(45, 56, sizes.tokens),
    }


def _history(draw: Draw, vocab: int) -> dict[str, Tensor]:
    counts = (draw.integers(-20, 4, LINES, vocab)).clamp_min(0).to(torch.int32)
    return {"counts": counts, "in_prompt": draw.integers(0, 9, LINES, vocab) == 0}


def _chosen(sizes: Sizes, draw: Draw) -> Tensor:
    chosen = draw.integers(0, 900, sizes.tokens, dtype=torch.int32)
    chosen[4::9] = -1
    return chosen


def adjust_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    vocab = whole(traits, "vocab")
    edit_ids = torch.stack([draw.permutation(vocab)[:EDITS] for _ in range(SLOTS)]).to(torch.int32)
    edit_ids[::2, EDITS // 2 :] = -1
    values = draw.normal(SLOTS, 2, EDITS, dtype=torch.float32, scale=4.0)
    values[:, 0, 0] = -torch.inf
    args = {
        "logits": draw.normal(sizes.tokens, vocab, dtype=torch.float32, scale=3.0),
        **_rows(sizes, draw),
        "settings": _settings(draw, vocab),
        **_history(draw, vocab),
        "edit_ids": edit_ids,
        "edit_values": values,
    }
    return Inputs(args=args)


ADJUST = Op(
    name="sampling.adjust",
    summary="Penalise what rows have said and were asked, and add to some of their logits.",
    shapes=(
        "logits [S, V] float32 contiguous, slots [S] int64, positions [S] int64 (that the tokens will take), "
        "settings [M, 12] float64, counts [L, V] int32, in_prompt [L, V] bool, edit_ids [M, E] int32 (distinct, "
        "-1 unused), edit_values [M, 2, E] float32 (early, late) -> scores [S, V] float32."
    ),
    traits=(VOCAB,),
    reference=Plain(ref.adjust),
    sizes=ROWS,
    points=tuple(Point({"vocab": 163840}, Sizes(rows)) for rows in (1, 16)),
    inputs=adjust_inputs,
    tolerance={FP32: ROUNDED[FP32]},
    cost=lambda traits, sizes: Cost(
        13 * sizes.tokens * whole(traits, "vocab"), 6 * sizes.tokens * whole(traits, "vocab")
    ),
)


def draw_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    vocab = whole(traits, "vocab")
    scores = draw.normal(sizes.tokens, vocab, dtype=torch.float32, scale=2.0)
    scores = (scores * 16).round() / 16  # equals at every edge
    args = {
        "scores": scores,
        **_rows(sizes, draw),
        "settings": _settings(draw, vocab),
        "chosen": _chosen(sizes, draw),
    }
    return Inputs(args=args, mutates=("chosen",))


DRAW = Op(
    name="sampling.draw",
    summary="Draw a token for each row that wants one: temperature, top_k, top_p, min_p, its seed and position.",
    shapes=(
        "scores [S, V] float32 contiguous, slots [S] int64, positions [S] int64, settings [M, 12] float64, chosen "
        "[S] int32 (changed) -> chosen. top_k and top_p say whether any row sets them: what none sets may be left "
        "out. Rows of temperature 0 take the likeliest score if they were adjusted; "
        "rows that ask for nothing, and negative ones, stay. docs/concepts/sampling.md defines the draw: "
        "equal scores, seed and position give the same token."
    ),
    traits=(VOCAB,),
    reference=Plain(ref.draw_rows),
    sizes=ROWS,
    points=tuple(Point({"vocab": 163840}, Sizes(rows)) for rows in (1, 16)),
    inputs=draw_inputs,
    tolerance={FP32: ROUNDED[FP32]},
    cost=lambda traits, sizes: Cost(
        4 * sizes.tokens * whole(traits, "vocab"), 8 * sizes.tokens * whole(traits, "vocab")
    ),
)


def mask_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    rows, vocab = sizes.tokens, whole(traits, "vocab")
    scores = draw.normal(rows, vocab, dtype=torch.float32, scale=3.0)
    scores[0, :2] = torch.tensor([torch.inf, -torch.inf])
    lines = draw.permutation(rows)[:rows].to(torch.int32)
    lines[1::3] = -1
    bits = draw.integers(-(1 << 31), 1 << 31, rows + 1, -(-vocab // 32), dtype=torch.int32)
    return Inputs(args={"scores": scores, "lines": lines, "bits": bits})


MASK = Op(
    name="sampling.mask",
    summary="Rule out the tokens of rows that their grammars do not have next.",
    shapes=(
        "scores [S, V] float32 contiguous, lines [S] int32 (the row's line of bits, -1 for a row without), bits "
        "[G, W] int32 contiguous with 32 W >= V (bit i % 32 of word i / 32 is set where token i may come) -> "
        "[S, V] float32: minus infinity where a bit is not set, the score elsewhere. Not a number and plus "
        "infinity stay: the row is at fault. Several rows may share a line, or be of one request."
    ),
    traits=(VOCAB,),
    reference=Plain(ref.mask),
    sizes=ROWS,
    points=tuple(Point({"vocab": 163840}, Sizes(rows)) for rows in (1, 16)),
    inputs=mask_inputs,
    tolerance={FP32: ROUNDED[FP32]},
    cost=lambda traits, sizes: Cost(
        sizes.tokens * whole(traits, "vocab") * 65 // 8, sizes.tokens * whole(traits, "vocab")
    ),
)


def note_inputs(traits: Traits, sizes: Sizes, draw: Draw) -> Inputs:
    vocab = whole(traits, "vocab")
    forced = draw.integers(0, vocab, SLOTS, FORCED, dtype=torch.int32)
    forced[::3, FORCED // 2 :] = -1
    args = {
        "chosen": _chosen(sizes, draw),
        **_rows(sizes, draw),
        "settings": _settings(draw, vocab),
        "forced": forced,
        "counts": _history(draw, vocab)["counts"],
        "last_tokens": draw.integers(0, vocab, SLOTS),
    }
    return Inputs(args=args, mutates=("chosen", "counts", "last_tokens"))


NOTE = Op(
    name="sampling.note",
    summary="Put recorded tokens in place of chosen ones; note what rows say as last, and in their history.",
    shapes=(
        "chosen [S] int32 (changed), slots [S] int64, positions [S] int64, settings [M, 12] float64, forced [M, F] "
        "int32 (-1 past the end), counts [L, V] int32 (changed), last_tokens [M] int64 (changed) -> chosen. A "
        "negative row stays, and its last token is 0."
    ),
    traits=(VOCAB,),
    reference=Plain(ref.note),
    sizes=ROWS,
    points=tuple(Point({"vocab": 163840}, Sizes(rows)) for rows in (1, 16)),
    inputs=note_inputs,
    tolerance={FP32: ROUNDED[FP32]},
    cost=lambda traits, sizes: Cost(160 * sizes.tokens, 0),
)

OPS = (ADJUST, MASK, DRAW, NOTE)
