# SPDX-License-Identifier: MIT
"""Mixture of experts, written plainly: score, choose, and run each expert on the tokens that chose it.

In: router logits or activations. Out: new tensors. Math is float32, or float64 when the inputs are. No
capacity limit: no token is ever dropped. No sharding: expert ids index the weights given, others are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenspeed.kernels.ref.dense import (
    DenseWeight,
    add_rms,
    dense_prepare,
    quantise_fp8_block,
    quantise_int8,
    restored,
)
from tokenspeed.kernels.ref.math import finish, wide


def gate_prepare(weight: Tensor) -> Tensor:
    """Keep the gate [E, C]."""
    return weight


def gate(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    *,
    top_k: int,
    groups: int,
    groups_top: int,
    scoring: str,
    group_score: str,
    normalise: bool,
    scale: float,
    write_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Multiply x by the gate, unrounded, and route by the product; padding chooses nothing."""
    source = wide(x)
    ids, weights = route(
        source @ w.to(source.dtype).T,
        bias,
        top_k=top_k,
        groups=groups,
        groups_top=groups_top,
        scoring=scoring,
        group_score=group_score,
        normalise=normalise,
        scale=scale,
    )
    if write_index is None:
        return ids, weights
    padding = (write_index < 0)[:, None]
    return ids.masked_fill(padding, -1), weights.masked_fill(padding, 0.0)


def norm_gate(
    x: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
    w: Tensor,
    bias: Tensor | None,
    *,
    top_k: int,
    groups: int,
    groups_top: int,
    scoring: str,
    group_score: str,
    normalise: bool,
    scale: float,
    write_index: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Add x to the residual, normalise the sum, and do as `gate` with that; return it and the sum too."""
    normed, summed = add_rms(x, residual, norm_weight, eps)
    ids, weights = gate(
        normed,
        w,
        bias,
        top_k=top_k,
        groups=groups,
        groups_top=groups_top,
        scoring=scoring,
        group_score=group_score,
        normalise=normalise,
        scale=scale,
        write_index=write_index,
    )
    return ids, weights, normed, summed


def route(
    logits: Tensor,
    bias: Tensor | None,
    *,
    top_k: int,
    groups: int,
    groups_top: int,
    scoring: str,
    group_score: str,
    normalise: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Choose `top_k` experts of the best `groups_top` groups by score + bias; weigh them by score alone."""
    tokens, experts = logits.shape
    scores = wide(logits).softmax(-1) if scoring == "softmax" else wide(logits).sigmoid()
    choosing = scores if bias is None else scores + wide(bias)
    if groups_top < groups:
        grouped = choosing.view(tokens, groups, experts // groups)
        best = grouped.amax(-1) if group_score == "max" else grouped.topk(2, -1).values.sum(-1)
        kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, _order(best)[:, :groups_top], True)
        choosing = choosing.masked_fill(~kept.repeat_interleave(experts // groups, 1), -torch.inf)
    ids = _order(choosing)[:, :top_k]
    weights = scores.gather(1, ids)
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-20)
    return ids.to(torch.int32), (weights * scale).to(logits.dtype)


def _order(scores: Tensor) -> Tensor:
    """Order indices by falling score; equal scores by rising index."""
    return scores.sort(dim=-1, descending=True, stable=True).indices


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """Prepared experts; the shared ones are one wide expert, None without any.

    Scales are None for the native format, [E, 2F, 1] and [E, C, 1] for int8, and one per 128 x 128 of each expert
    for fp8_block: [E, 2F / 128, ceil(C / 128)] and [E, ceil(C / 128), F / 128].
    """

    w13: Tensor
    w2: Tensor
    scale13: Tensor | None
    scale2: Tensor | None
    shared: tuple[DenseWeight, DenseWeight] | None

    def of(self, expert: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return one expert's gate-and-up [2F, C] and down [C, F] in the dtype of the math."""
        scale13 = None if self.scale13 is None else self.scale13[expert]
        scale2 = None if self.scale2 is None else self.scale2[expert]
        return restored(self.w13[expert], scale13, dtype), restored(self.w2[expert], scale2, dtype)


def experts_prepare(
    w13: Tensor,
    w2: Tensor,
    shared13: Tensor | None = None,
    shared2: Tensor | None = None,
    scale13: Tensor | None = None,
    scale2: Tensor | None = None,
    shared_scale13: Tensor | None = None,
    shared_scale2: Tensor | None = None,
    *,
    format: str = "native",
) -> ExpertWeights:
    """Keep the weights, with their scales where they have some, or round them to int8."""
    shared = None
    if shared13 is not None and shared2 is not None:
        shared = (
            dense_prepare(shared13, None, shared_scale13, format=format),
            dense_prepare(shared2, None, shared_scale2, format=format),
        )
    if format == "int8":
        (w13, scale13), (w2, scale2) = quantise_int8(w13), quantise_int8(w2)
    if format == "fp8_block" and scale13 is None:
        (w13, scale13), (w2, scale2) = quantise_fp8_block(w13), quantise_fp8_block(w2)
    return ExpertWeights(w13, w2, scale13, scale2, shared)


def experts(
    x: Tensor, ids: Tensor, weights: Tensor, w: ExpertWeights, *, out: Tensor | None = None
) -> Tensor:
    """Sum over each token's experts, weight * W2 (silu(W1 x) * W3 x), and over the shared ones, unweighted."""
    source = wide(x)
    total = torch.zeros_like(source)
    for expert in ids.unique().tolist():
        if not 0 <= expert < len(w.w13):
            continue
        token, place = (ids == expert).nonzero(as_tuple=True)
        result = _gated(source[token], *w.of(expert, source.dtype))
        total.index_add_(0, token, result * weights[token, place, None].to(result.dtype))
    if w.shared is not None:
        up, down = w.shared
        total += _gated(source, up.dense(source.dtype), down.dense(source.dtype))
    return finish(total, x.dtype, out)


def _gated(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    gate, up = (x @ w13.T).chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up) @ w2.T
