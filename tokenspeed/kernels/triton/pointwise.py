# SPDX-License-Identifier: MIT
"""`embedding.lookup`, `norm.rms`, `norm.add_rms`, `activation.silu_mul`: one launch each, bound by bytes or,
for few tokens, by the launch.

In: activations [T, C], last dimension dense, rows at any stride. Out: new tensors, or `out`; `add_rms` updates
the residual in place. Sums are float32 and rounded once. A program has one token: rows never meet, so a row's
result does not depend on the others.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from tokenspeed.kernels.needs import AtLeast, Needs
from tokenspeed.kernels.spec import Band, Kernel, Plain
from tokenspeed.kernels.triton.launch import early, expect

LANE_ELEMENTS = 8
"""Elements a thread should hold: one 16-byte load of a 16-bit dtype."""
COLUMNS = 1024
"""Channels of one program where rows are cut."""


@triton.jit
def _rms(x, x_stride, weight, eps, y, y_stride, C: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < C
    gain = tl.load(weight + column, inside, 0.0).to(tl.float32)
    if EARLY:
        cuda.gdc_wait()
    value = tl.load(x + row * x_stride + column, inside, 0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / C + eps)
    tl.store(y + row * y_stride + column, value * scale * gain, inside)


@triton.jit
def _add_rms(
    x, x_stride, residual, r_stride, weight, eps, y, y_stride,
    C: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < C
    gain = tl.load(weight + column, inside, 0.0).to(tl.float32)
    if EARLY:
        cuda.gdc_wait()
    before = tl.load(residual + row * r_stride + column, inside, 0.0).to(tl.float32)
    total = tl.load(x + row * x_stride + column, inside, 0.0).to(tl.float32) + before
    tl.store(residual + row * r_stride + column, total, inside)
    scale = tl.rsqrt(tl.sum(total * total, 0) / C + eps)
    tl.store(y + row * y_stride + column, total * scale * gain, inside)


@triton.jit
def _silu_mul(x, x_stride, y, y_stride, F: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < F
    gate = tl.load(x + row * x_stride + column, inside, 0.0).to(tl.float32)
    up = tl.load(x + row * x_stride + F + column, inside, 0.0).to(tl.float32)
    tl.store(y + row * y_stride + column, gate / (1.0 + tl.exp(-gate)) * up, inside)


@triton.jit
def _lookup(ids, table, vocabulary, y, C: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < C
    id = tl.load(ids + row)
    known = (id >= 0) & (id < vocabulary)
    tl.store(y + row * C + column, tl.load(table + id * C + column, inside & known, 0.0), inside)


def warps_of(elements: int) -> int:
    """How many warps a program of so many elements should have: each thread one wide load, 16 at most."""
    return min(16, max(1, elements // (32 * LANE_ELEMENTS)))


def _like(x: Tensor, out: Tensor | None, columns: int) -> Tensor:
    return x.new_empty((x.shape[0], columns)) if out is None else out


def rms(x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    """Divide each vector by its root mean square and multiply by the weight."""
    tokens, width = x.shape
    expect(x.stride(1) == 1 and weight.shape == (width,), "dense rows x [T, C] and weight [C]", x, weight)
    y = _like(x, out, width)
    block, ahead = triton.next_power_of_2(width), early(x.device)
    _rms[(tokens,)](
        x, x.stride(0), weight, eps, y, y.stride(0), width, block, ahead,
        num_warps=warps_of(block), launch_pdl=ahead,
    )  # fmt: skip
    return y


def add_rms(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add x to the residual (in place), then normalise the sum as it is before rounding."""
    tokens, width = x.shape
    fits = x.shape == residual.shape and x.stride(1) == residual.stride(1) == 1 and weight.shape == (width,)
    expect(fits, "dense rows x and residual [T, C] and weight [C]", x, residual, weight)
    y = _like(x, out, width)
    block, ahead = triton.next_power_of_2(width), early(x.device)
    _add_rms[(tokens,)](
        x, x.stride(0), residual, residual.stride(0), weight, eps, y, y.stride(0), width, block,
        ahead, num_warps=warps_of(block), launch_pdl=ahead,
    )  # fmt: skip
    return y, residual


def silu_mul(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return silu(first half) * second half."""
    tokens, both = x.shape
    expect(x.stride(1) == 1 and both % 2 == 0, "dense rows x [T, 2F]", x)
    y = _like(x, out, both // 2)
    block, ahead = min(COLUMNS, triton.next_power_of_2(both // 2)), early(x.device)
    _silu_mul[(tokens, triton.cdiv(both // 2, block))](
        x, x.stride(0), y, y.stride(0), both // 2, block, ahead, num_warps=warps_of(block), launch_pdl=ahead
    )
    return y


def lookup(ids: Tensor, table: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Take one row of the table for each id; an id outside the table gives zeros."""
    vocabulary, width = table.shape
    expect(table.is_contiguous(), "a contiguous table [V, C]", table)
    y = table.new_empty((ids.shape[0], width)) if out is None else out
    block, ahead = min(COLUMNS, triton.next_power_of_2(width)), early(table.device)
    _lookup[(ids.shape[0], triton.cdiv(width, block))](
        ids, table, vocabulary, y, width, block, ahead, num_warps=warps_of(block), launch_pdl=ahead
    )
    return y


_NEEDS = Needs(sm=AtLeast((8, 0)), dtype={torch.bfloat16, torch.float16, torch.float32})

KERNELS = (
    Kernel("embedding.lookup", "triton", _NEEDS, Band.FAST, Plain(lookup)),
    Kernel("norm.rms", "triton", _NEEDS, Band.FAST, Plain(rms)),
    Kernel("norm.add_rms", "triton", _NEEDS, Band.FAST, Plain(add_rms)),
    Kernel("activation.silu_mul", "triton", _NEEDS, Band.FAST, Plain(silu_mul)),
)
