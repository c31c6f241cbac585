# SPDX-License-Identifier: MIT
"""A block-scaled weight as numbers again, for the product of many tokens, which takes no scales.

In: a weight [O, I], e4m3, and its scales, one a block of 128 x 128. Out: a new tensor [O, I]. One pass: a byte
read and two written for each element, little beside the product it is made for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenspeed.kernels.triton.launch import expect

ROWS, COLUMNS = 32, 128


@triton.jit
def _restore(w, scale, y, outs, INS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = row.to(tl.int64)[:, None] * INS + column[None, :]
    there = (row < outs)[:, None] & (column < INS)[None, :]
    value = tl.load(w + at, there, 0.0).to(tl.float32)
    blocks: tl.constexpr = (INS + 127) // 128
    value *= tl.load(scale + tl.program_id(0) * ROWS // 128 * blocks + tl.program_id(1) * COLUMNS // 128)
    tl.store(y + at, value, there)


def restore(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight in `dtype`, scales applied."""
    outputs, inputs = weight.shape
    expect(
        weight.is_contiguous() and scale.is_contiguous(), "a contiguous weight and its scales", weight, scale
    )
    y = torch.empty((outputs, inputs), dtype=dtype, device=weight.device)
    grid = (triton.cdiv(outputs, ROWS), triton.cdiv(inputs, COLUMNS))
    _restore[grid](weight, scale, y, outputs, inputs, ROWS, COLUMNS, num_warps=4)
    return y
