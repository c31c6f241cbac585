# SPDX-License-Identifier: MIT
"""`norm.rms`, `norm.add_rms`, `activation.silu_mul`, `embedding.lookup`.

In: activations [T, C] (rows may be strided). Out: new tensors; `add_rms` updates the residual in place and
returns it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenspeed.kernels.cpu import _cpu
from tokenspeed.kernels.cpu.buffers import DTYPES, expect, output


def _check_rows(x: Tensor, weight: Tensor) -> None:
    expect(
        x.dim() == 2 and x.stride(1) == 1 and weight.shape == x.shape[1:] and weight.dtype is x.dtype,
        "want x [T, C] and a weight [C] of its dtype",
        x,
        weight,
    )


def rms(x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    """Divide each vector by its root mean square and multiply by the weight."""
    _check_rows(x, weight)
    tokens, width = x.shape
    y = output(out, (tokens, width), x.dtype)
    dtype = DTYPES[x.dtype]
    _cpu.norm(x.data_ptr(), tokens, width, x.stride(0), 0, weight.data_ptr(), y.data_ptr(), eps, dtype)
    return y


def add_rms(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add x to the residual (in place), then normalise the sum as it is before rounding."""
    _check_rows(x, weight)
    expect(
        residual.shape == x.shape and residual.is_contiguous() and residual.dtype is x.dtype,
        "residual must be contiguous and like x",
        residual,
        x,
    )
    tokens, width = x.shape
    y = output(out, (tokens, width), x.dtype)
    _cpu.norm(
        x.data_ptr(), tokens, width, x.stride(0), residual.data_ptr(), weight.data_ptr(), y.data_ptr(), eps,
        DTYPES[x.dtype],
    )  # fmt: skip
    return y, residual


def silu_mul(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return silu(first half) * second half."""
    tokens, width = x.shape
    expect(width % 2 == 0 and x.stride(1) == 1 and x.dtype in DTYPES, "want x [T, 2F]", x)
    y = output(out, (tokens, width // 2), x.dtype)
    _cpu.silu_mul(x.data_ptr(), tokens, width // 2, x.stride(0), y.data_ptr(), DTYPES[x.dtype])
    return y


def lookup(ids: Tensor, table: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Take one row of the table for each id; an id outside the table gives zeros."""
    expect(
        ids.dim() == 1 and ids.dtype is torch.int64 and ids.is_contiguous() and table.is_contiguous(),
        "want ids [T] int64 and a contiguous table [V, C]",
        ids,
        table,
    )
    vocabulary, width = table.shape
    y = output(out, (ids.shape[0], width), table.dtype)
    _cpu.embedding(
        ids.data_ptr(), ids.shape[0], width, vocabulary, table.data_ptr(), y.data_ptr(), DTYPES[table.dtype]
    )
    return y
