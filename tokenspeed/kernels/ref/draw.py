# SPDX-License-Identifier: MIT
"""Draw one token of each row from its scores, after temperature and truncation.

In: scores [S, V] float32 and `Knobs`, one value a row. Out: ids [S] int64. Rows do not see each other:
probabilities become whole numbers (`WEIGHT_ONE` for the likeliest token), and whole numbers sum to the same
total in any order, so a row gives the same token in any batch. Nothing waits for the device.

Order: temperature, then top_k, then top_p of what top_k left, then min_p against the likeliest; the draw walks
ids upwards. Where the edge of a set falls among equals, they are kept together; only top_k up to `settings.NARROW_MAX`
keeps exactly k, lower ids first. A token less likely than 2^-40 of the likeliest is never drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WEIGHT_ONE = 2.0**40
CHUNK_ELEMENTS = 1 << 21
"""Elements handled at a time, to bound the memory of intermediates."""
KEY_BITS = 32
DIGITS = ((21, 11), (10, 11), (0, 10))
"""How `threshold` cuts the bits of a key: (shift, bits), highest first."""
BUCKETS_MAX = 1 << 11


@dataclass(frozen=True, slots=True)
class Knobs:
    """Parameters of S rows, each [S] float64 on the device; `top_k` is int64, V where it is off."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    chance: Tensor
    """In [0, 1): where in the distribution to draw."""

    def rows(self, rows: slice | Tensor) -> Knobs:
        """Return the parameters of some rows."""
        return Knobs(
            self.temperature[rows], self.top_k[rows], self.top_p[rows], self.min_p[rows], self.chance[rows]
        )


def draw(
    scores: Tensor, knobs: Knobs, *, narrow_k: int = 0, top_k: bool = False, top_p: bool = False
) -> Tensor:
    """Draw a token of each row.

    narrow_k: the largest top_k of the rows if all are at most `settings.NARROW_MAX`, else 0; then `top_k` and `top_p`
    say whether any row sets them, which costs. A row that is not finite gives some id.
    """
    size = max(1, CHUNK_ELEMENTS // max(scores.shape[1], BUCKETS_MAX))
    chunks = [slice(start, start + size) for start in range(0, scores.shape[0], size)]
    return torch.cat([_draw(scores[rows], knobs.rows(rows), narrow_k, top_k, top_p) for rows in chunks])


def _draw(scores: Tensor, knobs: Knobs, narrow_k: int, top_k: bool, top_p: bool) -> Tensor:
    if not narrow_k:
        likely = relative(scores, knobs.temperature)
        return _pick(likely, knobs, ranked=scores if top_k else None, top_p=top_p)
    values, ids = likeliest(scores, narrow_k)
    place = torch.arange(narrow_k, device=scores.device)
    likely = relative(values, knobs.temperature).masked_fill_(place >= knobs.top_k[:, None], 0.0)
    ids, order = ids.sort(-1)  # the draw walks ids upwards, however many are left
    column = _pick(likely.gather(1, order), knobs, ranked=None, top_p=True)
    return ids.gather(1, column[:, None])[:, 0]


def relative(scores: Tensor, temperature: Tensor) -> Tensor:
    """Return each token's probability over that of the likeliest, in [0, 1]; 0 for what is not a number."""
    shifted = scores - scores.amax(-1, keepdim=True)
    return shifted.div_(temperature.float()[:, None]).exp_().nan_to_num_(nan=0.0)


def likeliest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` highest scores of each row and their ids, best first, equals by rising id."""
    vocab = scores.shape[1]
    falling_id = torch.arange(vocab - 1, -1, -1, device=scores.device)
    keys = _ordered(scores).long().bitwise_left_shift_(32).bitwise_or_(falling_id)
    ids = vocab - 1 - (keys.topk(count).values & 0xFFFFFFFF)
    return scores.gather(1, ids), ids


def _ordered(scores: Tensor) -> Tensor:
    """Return integers [S, V] int32 in the order of the scores."""
    bits = (scores + 0.0).view(torch.int32)  # a negative zero is no smaller
    # The bits of a float as an integer are in the float's order once those of negative ones are turned over.
    return (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)


def _pick(likely: Tensor, knobs: Knobs, *, ranked: Tensor | None, top_p: bool) -> Tensor:
    """Truncate and draw; return a column of each row. `ranked` are the scores that top_k counts by."""
    weights = (likely * WEIGHT_ONE).long()
    if ranked is not None:
        keys = _ordered(ranked).long() + (1 << 31)
        weights.masked_fill_(keys < threshold(keys, torch.ones_like(weights), knobs.top_k)[:, None], 0)
    if top_p:
        keys = likely.view(torch.int32)  # order of non-negative floats is the order of their bits
        target = (weights.sum(-1).double() * knobs.top_p).ceil().long().clamp_min(1)
        weights.masked_fill_(keys < threshold(keys, weights, target)[:, None], 0)
    weights.masked_fill_(likely < knobs.min_p.float()[:, None], 0)
    reached = weights.cumsum(-1)
    total = reached[:, -1]
    aim = torch.minimum((total.double() * knobs.chance).long(), total - 1)
    column = torch.searchsorted(reached, aim[:, None], right=True)[:, 0]
    return column.clamp_max(likely.shape[1] - 1)


def threshold(keys: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    """Return each row's largest key such that the weights of the keys at least as large reach the target.

    keys: [S, V] not negative, int32, or int64 below 2^32; weights: [S, V] int64, not negative; target: [S]
    int64, at least 1. The smallest key where all weights together do not reach it. A radix search: three
    histograms of 11, 11 and 10 bits.
    """
    rows = keys.shape[0]
    above = torch.zeros(rows, 1, dtype=torch.int64, device=keys.device)
    prefix = torch.zeros(rows, 1, dtype=keys.dtype, device=keys.device)
    for shift, bits in DIGITS:
        if shift + bits < KEY_BITS:
            weights = weights.masked_fill((keys >> (shift + bits)) != prefix, 0)
        digits = (keys >> shift).bitwise_and_((1 << bits) - 1).long()
        histogram = torch.zeros(rows, 1 << bits, dtype=torch.int64, device=keys.device)
        histogram.scatter_add_(1, digits, weights)
        at_least = histogram.flip(-1).cumsum(-1).flip(-1) + above
        digit = ((at_least >= target[:, None]).sum(-1, keepdim=True) - 1).clamp_min(0)
        above = at_least.gather(1, digit) - histogram.gather(1, digit)
        prefix = (prefix << bits) | digit.to(keys.dtype)
    return prefix[:, 0]
