# SPDX-License-Identifier: MIT
"""Sampling beyond the likeliest token, written plainly: adjust scores, draw, note.

In: logits, the slots of the rows and the positions their tokens will take, and tables by slot (`settings`,
edits, recorded answers) or line (history). Out: adjusted scores; `chosen` and the tables, changed. Rows do not
see each other. Rows of different kinds are looked for on the host, which waits where the tables are not its
own; arithmetic is float32 and whole numbers (`draw`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tokenspeed.kernels.ref.chance import uniform
from tokenspeed.kernels.ref.draw import Knobs, draw
from tokenspeed.kernels.settings import NARROW_MAX, Column


def adjust(
    logits: Tensor,
    slots: Tensor,
    positions: Tensor,
    settings: Tensor,
    counts: Tensor,
    in_prompt: Tensor,
    edit_ids: Tensor,
    edit_values: Tensor,
) -> Tensor:
    """Return the scores of rows: penalised, then edited; the logits themselves where neither is."""
    scores, rows = logits.float(), settings[slots]
    penalised = (rows[:, Column.LINE] >= 0).nonzero()[:, 0]
    if len(penalised) == len(scores):
        scores = _penalised(scores, rows, counts, in_prompt)
    elif len(penalised):
        changed = _penalised(scores[penalised], rows[penalised], counts, in_prompt)
        scores = scores.index_copy(0, penalised, changed)
    edited = (rows[:, Column.EDITED] > 0).nonzero()[:, 0].tolist()
    if edited and not len(penalised):
        scores = scores.clone()
    for row in edited:
        slot = int(slots[row])
        used = edit_ids[slot] >= 0
        late = int(positions[row] >= rows[row, Column.LATE_FROM])
        scores[row, edit_ids[slot][used].long()] += edit_values[slot, late][used]
    return scores


def _penalised(scores: Tensor, rows: Tensor, counts: Tensor, in_prompt: Tensor) -> Tensor:
    lines = rows[:, Column.LINE].long()
    presence, frequency, repetition = (
        rows[:, column].float()[:, None] for column in (Column.PRESENCE, Column.FREQUENCY, Column.REPETITION)
    )
    counted = counts[lines]
    said = counted > 0
    rate = torch.where(said | in_prompt[lines], repetition, 1.0)
    scores = torch.where(scores > 0, scores / rate, scores * rate)
    return scores - frequency * counted - presence * said


def mask(scores: Tensor, lines: Tensor, bits: Tensor) -> Tensor:
    """Return scores with what the rows' bits rule out at minus infinity; what is no finite number stays."""
    masked = (lines >= 0).nonzero()[:, 0]
    words = bits[lines[masked].long()]
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    allowed = ((words[:, :, None] >> shifts) & 1).flatten(1)[:, : scores.shape[1]].bool()
    own = scores[masked].float()
    kept = torch.where(allowed | own.isnan() | (own == torch.inf), own, -torch.inf)
    return kept if len(masked) == len(scores) else scores.float().index_copy(0, masked, kept)


def draw_rows(
    scores: Tensor,
    slots: Tensor,
    positions: Tensor,
    settings: Tensor,
    chosen: Tensor,
    *,
    top_k: bool = True,
    top_p: bool = True,
) -> Tensor:
    """Choose for each row that wants more than its likeliest logit; others, and rows at fault, stay."""
    del top_k, top_p  # which the settings say
    scores = scores.float()
    rows = settings[slots]
    counts, shares, vocab = rows[:, Column.TOP_K], rows[:, Column.TOP_P], scores.shape[1]
    random = rows[:, Column.TEMPERATURE] > 0
    changed = (rows[:, Column.LINE] >= 0) | (rows[:, Column.EDITED] > 0)
    narrow = random & (counts <= NARROW_MAX)
    truncated = random & ~narrow & ((counts < vocab) | (shares < 1))
    sets_k, sets_p = bool((counts[truncated] < vocab).any()), bool((shares[truncated] < 1).any())
    ways: tuple[tuple[Tensor, Callable[[Tensor, Knobs], Tensor]], ...] = (
        (changed & ~random, lambda scores, _: scores.argmax(-1)),
        (narrow, partial(draw, narrow_k=int(counts[narrow].max()) if narrow.any() else 0)),
        (truncated, partial(draw, top_k=sets_k, top_p=sets_p)),
        (random & ~narrow & ~truncated, draw),
    )
    for members, choose in ways:
        index = members.nonzero()[:, 0]
        if len(index):
            mine = scores if len(index) == len(scores) else scores[index]
            found = choose(mine, _knobs(rows[index], positions[index])).to(torch.int32)
            chosen[index] = torch.where(chosen[index] < 0, chosen[index], found)
    return chosen


def _knobs(rows: Tensor, positions: Tensor) -> Knobs:
    seeds = rows.view(torch.int64)[:, Column.SEED].cpu().numpy().view("u8")
    chance = torch.from_numpy(uniform(seeds, positions.cpu().numpy())).to(rows.device)
    return Knobs(
        rows[:, Column.TEMPERATURE],
        rows[:, Column.TOP_K].long(),
        rows[:, Column.TOP_P],
        rows[:, Column.MIN_P],
        chance,
    )


def note(
    chosen: Tensor,
    slots: Tensor,
    positions: Tensor,
    settings: Tensor,
    forced: Tensor,
    counts: Tensor,
    last_tokens: Tensor,
) -> Tensor:
    """Put recorded tokens in place of chosen ones, and note what rows say: as last, and in the history."""
    rows = settings[slots]
    start = rows[:, Column.FORCED_FROM].long()
    place = positions - start
    inside = (start >= 0) & (place >= 0) & (place < forced.shape[1])
    recorded = forced[slots, place.clamp(0, max(0, forced.shape[1] - 1))] if forced.shape[1] else chosen
    chosen.copy_(torch.where(inside & (recorded >= 0) & (chosen >= 0), recorded, chosen))
    tokens = chosen.clamp_min(0).long()
    last_tokens.index_copy_(0, slots, tokens)
    lines = rows[:, Column.LINE].long()
    penalised = ((lines >= 0) & (chosen >= 0)).nonzero()[:, 0]
    if len(penalised):
        counts[lines[penalised], tokens[penalised]] += 1
    return chosen
