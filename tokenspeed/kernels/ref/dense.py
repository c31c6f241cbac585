# SPDX-License-Identifier: MIT
"""Linear maps, embedding, normalisation and gated activation, written plainly.

In: activations [T, C] and weights. Out: new tensors in the dtype of the activations (or `out`). Math is
float32, or float64 when the inputs are. No sharding, no fusion with neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenspeed.kernels.ref.math import finish, wide

FP8_BLOCK = 128
"""Rows and columns of a block of format `fp8_block`."""


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """A prepared weight.

    `scale` is None for the native format, [O, 1] float32 for int8, [ceil(O / 128), ceil(I / 128)] for fp8_block.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the weight [O, I] in the dtype of the math."""
        return restored(self.weight, self.scale, dtype)


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round to int8 with one scale per output channel: scale = max|w| / 127 (1 for a zero channel), half to
    even.

    weight [..., O, I] -> int8 of that shape, scale [..., O, 1] float32. This is the definition of format
    `int8`: it is float32 arithmetic whatever the weight's dtype, so that every kernel rounds to the same
    integers.
    """
    single = weight.to(torch.float32)
    peak = single.abs().amax(-1, keepdim=True)
    scale = torch.where(peak > 0, peak / 127, torch.ones_like(peak))
    return (single / scale).round().to(torch.int8), scale


def quantise_fp8_block(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round to e4m3 with one scale per block of 128 x 128: scale = max|w| / 448 (1 for a zero block).

    weight [..., O, I] -> e4m3 of that shape, scale [..., ceil(O / 128), ceil(I / 128)] float32: the format
    `fp8_block`, which DeepSeek's checkpoints have; of others, this is how they are rounded.
    """
    single = weight.to(torch.float32)
    down, right = -single.shape[-2] % FP8_BLOCK, -single.shape[-1] % FP8_BLOCK
    blocks = torch.nn.functional.pad(single, (0, right, 0, down))
    blocks = blocks.unflatten(-1, (-1, FP8_BLOCK)).unflatten(-3, (-1, FP8_BLOCK))
    peak = blocks.abs().amax((-3, -1))
    scale = torch.where(peak > 0, peak / torch.finfo(torch.float8_e4m3fn).max, torch.ones_like(peak))
    return (single / per_element(scale, weight.shape)).to(torch.float8_e4m3fn), scale


def per_element(scale: Tensor, shape: torch.Size) -> Tensor:
    """Return the scale of each element of a weight of `shape`, from one a row (int8) or one a block (fp8_block)."""
    if scale.shape[-2:] == (shape[-2], 1):  # where both readings fit, they mean the same
        return scale
    rows = scale.repeat_interleave(FP8_BLOCK, -2)[..., : shape[-2], :]
    return rows.repeat_interleave(FP8_BLOCK, -1)[..., : shape[-1]]


def restored(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return a stored weight as numbers of `dtype`, scales applied."""
    return (
        weight.to(dtype) if scale is None else weight.to(dtype) * per_element(scale, weight.shape).to(dtype)
    )


def dense_prepare(
    weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None, *, format: str = "native"
) -> DenseWeight:
    """Keep the weight, with its scale where it has one, or round it as the format says."""
    if format == "fp8_block" and scale is None:
        weight, scale = quantise_fp8_block(weight)
    if format != "int8":
        return DenseWeight(weight, scale, bias)
    quantised, scale = quantise_int8(weight)
    return DenseWeight(quantised, scale, bias)


def dense(x: Tensor, w: DenseWeight, *, float32_out: bool = False, out: Tensor | None = None) -> Tensor:
    """Return x W^T + b, rounded to the dtype of x unless it is wanted wide."""
    source = wide(x)
    result = source @ w.dense(source.dtype).T
    if w.bias is not None:
        result = result + wide(w.bias)
    return finish(result, source.dtype if float32_out else x.dtype, out)


def heads_prepare(weight: Tensor) -> Tensor:
    """Keep the weight as it is."""
    return weight


def heads(x: Tensor, w: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Multiply every head's vector by that head's own matrix."""
    return finish(torch.einsum("rha,hab->rhb", wide(x), wide(w)), x.dtype, out)


def lookup(ids: Tensor, table: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Take one row of the table for each id."""
    return finish(table[ids], table.dtype, out)


def rms(x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    """Divide each vector by its root mean square and multiply by the weight."""
    return finish(normalised(wide(x), weight, eps), x.dtype, out)


def add_rms(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add x to the residual, then normalise the sum as it is before rounding."""
    total = wide(x) + wide(residual)
    return finish(normalised(total, weight, eps), x.dtype, out), total.to(residual.dtype)


def normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMS norm of wide x over its last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * wide(weight)


def silu_mul(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return silu(first half) * second half."""
    gate, up = wide(x).chunk(2, -1)
    return finish(torch.nn.functional.silu(gate) * up, x.dtype, out)
