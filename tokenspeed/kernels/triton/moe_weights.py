# SPDX-License-Identifier: MIT
"""The weights of `moe.experts` as its Triton kernels read them: routed and shared experts in one stack.

In: what a checkpoint has, in the formats of `linear.dense`. Out: `Stacked`, and views of it that the copy engine
fetches tile by tile. Nothing here runs a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from tokenspeed.kernels.ref.dense import FP8_BLOCK, quantise_fp8_block, quantise_int8


@dataclass(frozen=True, slots=True)
class Stacked:
    """w13 [E + S, 2F, C], w2 [E + S, C, F]: the shared experts are the last S.

    Scales are None for the native format, one a row for int8 ([E + S, 2F, 1], [E + S, C, 1]), one per 128 x 128
    for fp8_block ([E + S, 2F / 128, ceil(C / 128)], [E + S, ceil(C / 128), F / 128]).
    """

    w13: Tensor
    w2: Tensor
    shared: int
    format: str = "native"
    scale13: Tensor | None = None
    scale2: Tensor | None = None


def prepare(
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
) -> Stacked:
    """Stack shared13 [2 S F, C] and shared2 [C, S F] behind w13 [E, 2F, C] and w2 [E, C, F], scales alike."""
    shared = 0 if shared2 is None else shared2.shape[1] // w2.shape[2]
    if format == "int8":
        (w13, scale13), (w2, scale2) = quantise_int8(w13), quantise_int8(w2)
        if shared13 is not None and shared2 is not None:  # as wholes: an output has one scale over all inputs
            (shared13, shared_scale13), (shared2, one) = quantise_int8(shared13), quantise_int8(shared2)
            shared_scale2 = one.expand(-1, shared)
    if format == "fp8_block" and scale13 is None:
        (w13, scale13), (w2, scale2) = _quantised(w13), _quantised(w2)
        if shared13 is not None and shared2 is not None:
            shared13, shared_scale13 = quantise_fp8_block(shared13)
            shared2, shared_scale2 = quantise_fp8_block(shared2)
    w13, w2 = _behind(w13, _ups(shared13, shared)), _behind(w2, _downs(shared2, shared))
    if format == "native":
        return Stacked(w13, w2, shared)
    if scale13 is None or scale2 is None:
        raise ValueError(f"weights in {format} come with scales, one per {FP8_BLOCK} x {FP8_BLOCK}")
    scale13 = _behind(scale13, _ups(shared_scale13, shared))
    return Stacked(w13, w2, shared, format, scale13, _behind(scale2, _downs(shared_scale2, shared)))


def _quantised(stacked: Tensor) -> tuple[Tensor, Tensor]:
    """`quantise_fp8_block` of each expert on its own: its temporaries are wide."""
    values = torch.empty(stacked.shape, dtype=torch.float8_e4m3fn, device=stacked.device)
    scales: list[Tensor] = []
    for into, expert in zip(values, stacked, strict=True):
        rounded, scale = quantise_fp8_block(expert)
        into.copy_(rounded)
        scales.append(scale)
    return values, torch.stack(scales)


def _ups(joined: Tensor | None, shared: int) -> Tensor | None:
    """[2 S F, C], gate rows of all before up rows of all -> [S, 2F, C]."""
    if joined is None:
        return None
    return joined.unflatten(0, (2, shared, -1)).transpose(0, 1).flatten(1, 2)


def _downs(joined: Tensor | None, shared: int) -> Tensor | None:
    """[C, S F] -> [S, C, F]."""
    return None if joined is None else joined.unflatten(1, (shared, -1)).transpose(0, 1)


def _behind(routed: Tensor, shared: Tensor | None) -> Tensor:
    """One stack of both; bytes are joined, because torch does not join 8-bit floats everywhere."""
    if shared is None:
        return routed.contiguous()
    parts = [part.contiguous().view(torch.uint8) for part in (routed, shared)]
    return torch.cat(parts).view(routed.dtype)


def blocks(stacked: Tensor, rows: int, depth: int) -> TensorDescriptor:
    """A stack as one matrix, of which tiles [rows, depth] are fetched."""
    return TensorDescriptor.from_tensor(stacked.flatten(0, 1), [rows, depth])


def or_any(scale: Tensor | None, other: Tensor) -> Tensor:
    """The scale, or a tensor that stands in for one that is not read."""
    return other if scale is None else scale
