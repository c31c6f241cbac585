# SPDX-License-Identifier: MIT
"""`moe.gate`, `moe.norm_gate`, `moe.route` and `moe.experts`.

In: router logits, activations [T, C], choices. Out: new tensors. Only the weights of chosen experts are read.
The gate is a float32 `linear.dense` before `route`; shared experts are one wide gated block of dense maps.

Law: a token's result is bitwise the same whatever the other tokens are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenspeed.kernels.cpu import _cpu
from tokenspeed.kernels.cpu.buffers import address, expect, output
from tokenspeed.kernels.cpu.linear import PackedWeight, dense, dense_prepare, pack
from tokenspeed.kernels.cpu.pointwise import add_rms, silu_mul


def gate_prepare(weight: Tensor) -> PackedWeight:
    """Pack the gate [E, C], float32."""
    return dense_prepare(weight)


def gate(
    x: Tensor,
    w: PackedWeight,
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
    """Multiply x [T, C] by the gate in float32 and route by the product; padding chooses nothing."""
    ids, weights = route(
        dense(x.float(), w),
        bias,
        top_k=top_k,
        groups=groups,
        groups_top=groups_top,
        scoring=scoring,
        group_score=group_score,
        normalise=normalise,
        scale=scale,
    )
    if write_index is not None and int(write_index.min()) < 0:
        padding = (write_index < 0)[:, None]
        ids.masked_fill_(padding, -1)
        weights.masked_fill_(padding, 0.0)
    return ids, weights


def norm_gate(
    x: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
    w: PackedWeight,
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
    expect(logits.dtype is torch.float32 and logits.is_contiguous(), "want logits [T, E], float32", logits)
    if bias is not None:
        fits = bias.dtype is torch.float32 and bias.shape == (experts,) and bias.is_contiguous()
        expect(fits, f"want bias [{experts}], float32", bias)
    ids = torch.empty((tokens, top_k), dtype=torch.int32)
    weights = torch.empty((tokens, top_k), dtype=torch.float32)
    _cpu.route(
        logits.data_ptr(), address(bias), tokens, experts, top_k, groups, groups_top, scoring == "sigmoid",
        group_score == "top2_sum", normalise, scale, ids.data_ptr(), weights.data_ptr(),
    )  # fmt: skip
    return ids, weights


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """Gate, up and down of all experts in panels: `w13` is [2E, F, C] (gate and up apart), `w2` [E, C, F];
    `shared` are gate-and-up and down of the shared experts as one."""

    w13: PackedWeight
    w2: PackedWeight
    experts: int
    width: int
    ffn: int
    shared: tuple[PackedWeight, PackedWeight] | None


def experts_prepare(
    w13: Tensor,
    w2: Tensor,
    shared13: Tensor | None = None,
    shared2: Tensor | None = None,
    *,
    format: str = "native",
) -> PackedExperts:
    """Pack w13 [E, 2F, C] and w2 [E, C, F]; and the shared experts [2 S F, C] and [C, S F], where there are any."""
    experts, width, ffn = w2.shape
    expect(w13.shape == (experts, 2 * ffn, width) and w13.dtype is w2.dtype, "w13 and w2 do not fit", w13, w2)
    shared = None
    if shared13 is not None and shared2 is not None:
        shared = dense_prepare(shared13, format=format), dense_prepare(shared2, format=format)
    return PackedExperts(
        pack(w13.reshape(2 * experts, ffn, width), format), pack(w2, format), experts, width, ffn, shared
    )


def experts(
    x: Tensor, ids: Tensor, weights: Tensor, w: PackedExperts, *, out: Tensor | None = None
) -> Tensor:
    """Sum over each token's experts, weight * W2 (silu(W1 x) * W3 x), and over the shared ones, unweighted."""
    tokens, width = x.shape
    expect(
        width == w.width
        and x.stride(1) == 1
        and x.dtype is w.w13.dtype
        and ids.shape == weights.shape
        and ids.shape[0] == tokens
        and ids.dtype is torch.int32
        and weights.dtype is torch.float32
        and ids.is_contiguous()
        and weights.is_contiguous(),
        f"want x [T, {w.width}] {w.w13.dtype}, ids [T, k] int32, weights [T, k] float32",
        x,
        ids,
        weights,
    )
    y = output(out, (tokens, width), x.dtype)
    _cpu.experts(
        x.data_ptr(), tokens, width, w.ffn, w.experts, ids.shape[1], x.stride(0), ids.data_ptr(),
        weights.data_ptr(), w.w13.where, w.w2.where, y.data_ptr(), w.w13.dtype_code, w.w13.format_code,
    )  # fmt: skip
    if w.shared is not None:
        up, down = w.shared
        wide = torch.empty((tokens, width), dtype=torch.float32)
        y.add_(dense(silu_mul(dense(x, up)), down, out=wide))
    return y
