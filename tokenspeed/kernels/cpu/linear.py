# SPDX-License-Identifier: MIT
"""`linear.dense`, `linear.heads` and the packing of weights that they and the other kernels read.

In: weights once, activations every step. Out: packed weights, new tensors. Weights are held packed only (16
output rows interleaved, see csrc/cpu/dot.h); int8 is rounded while packing, by the definition of the format
in `kernels/ref`.

Law: a row's result is bitwise the same whatever the other rows are and however many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenspeed.kernels.cpu import _cpu
from tokenspeed.kernels.cpu.buffers import DTYPES, FORMATS, address, expect, output, packed_buffer


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """`matrices` weights [outputs, inputs] in panels; `where` is the address of `data`."""

    data: Tensor
    where: int
    matrices: int
    outputs: int
    inputs: int
    dtype: torch.dtype
    dtype_code: int
    format_code: int
    bias: Tensor | None = None


def pack(weight: Tensor, format: str = "native", bias: Tensor | None = None) -> PackedWeight:
    """Pack a weight [O, I], or a stack of them [N, O, I]."""
    fits = weight.dim() in (2, 3) and weight.dtype in DTYPES
    expect(fits, "weight must be [O, I] or [N, O, I], bf16 or fp32", weight)
    stack = weight.unsqueeze(0) if weight.dim() == 2 else weight
    matrices, outputs, inputs = stack.shape
    sizes = (matrices, outputs, inputs)
    codes = (DTYPES[weight.dtype], FORMATS[format])
    data = packed_buffer(_cpu.packed_bytes(*sizes, *codes))
    source = stack.contiguous()
    _cpu.pack(source.data_ptr(), *sizes, data.data_ptr(), *codes)
    if bias is not None:
        expect(bias.shape == (matrices * outputs,), f"bias must be [{matrices * outputs}]", bias)
        bias = bias.contiguous()
    return PackedWeight(data, data.data_ptr(), *sizes, weight.dtype, *codes, bias)


def dense_prepare(weight: Tensor, bias: Tensor | None = None, *, format: str = "native") -> PackedWeight:
    """Pack a weight [O, I] and keep its bias [O]."""
    return pack(weight, format, bias)


def dense(x: Tensor, w: PackedWeight, *, float32_out: bool = False, out: Tensor | None = None) -> Tensor:
    """Return x W^T + b; `out` may be float32 whatever the dtype of x."""
    tokens, inputs = x.shape
    fits = inputs == w.inputs and x.dtype is w.dtype and x.stride(1) == 1
    expect(fits, f"x must be [T, {w.inputs}] {w.dtype}", x)
    dtype = torch.float32 if float32_out else x.dtype
    y = torch.empty((tokens, w.outputs), dtype=dtype) if out is None else out
    if out is not None:
        fits = out.shape == (tokens, w.outputs) and out.is_contiguous() and out.dtype in DTYPES
        expect(fits, "out does not fit", out, x)
    bias = w.bias
    if bias is not None and bias.dtype is not y.dtype:
        bias = bias.to(y.dtype)
    _cpu.linear(
        x.data_ptr(), tokens, 1, inputs, x.stride(0), 0, w.where, w.outputs, address(bias), y.data_ptr(),
        w.dtype_code, DTYPES[y.dtype], w.format_code,
    )  # fmt: skip
    return y


def heads_prepare(weight: Tensor) -> PackedWeight:
    """Pack a weight [H, A, B]: every head's own matrix, transposed."""
    return pack(weight.transpose(1, 2))


def heads(x: Tensor, w: PackedWeight, *, out: Tensor | None = None) -> Tensor:
    """Multiply every head's vector of x [R, H, A] by that head's own matrix."""
    rows, heads, inputs = x.shape
    expect(
        heads == w.matrices and inputs == w.inputs and x.dtype is w.dtype and x.stride(2) == 1,
        f"x must be [R, {w.matrices}, {w.inputs}] {w.dtype}",
        x,
    )
    y = output(out, (rows, heads, w.outputs), x.dtype)
    _cpu.linear(
        x.data_ptr(), rows, heads, inputs, x.stride(0), x.stride(1), w.where, w.outputs, 0, y.data_ptr(),
        w.dtype_code, w.dtype_code, 0,
    )  # fmt: skip
    return y
