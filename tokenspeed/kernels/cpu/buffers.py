# SPDX-License-Identifier: MIT
"""How tensors become addresses for the extension, and the checks that make that safe.

In: torch tensors on the CPU. Out: dtype codes, layout checks, output buffers. It runs no kernel. The
extension trusts every address, size and stride it is given, so each wrapper of this package checks shapes and
dtypes before its call; these checks are kept to a few attribute reads, because a decode step makes hundreds
of calls.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenspeed.kernels.cpu import _cpu

DTYPES: dict[torch.dtype, int] = {torch.float32: 0, torch.bfloat16: 1}
"""Codes of `Dtype` in csrc/cpu/kernels.h."""

FORMATS: dict[str, int] = {"native": 0, "int8": 1}
"""Codes of `Format` in csrc/cpu/kernels.h."""

HUGE_PAGE_BYTES = 2 << 20


def expect(holds: bool, what: str, *tensors: Tensor) -> None:
    """Raise ValueError, naming the tensors' shapes and dtypes, unless `holds`."""
    if not holds:
        seen = ", ".join(
            f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')} strides {t.stride()}" for t in tensors
        )
        raise ValueError(f"{what}; got {seen}")


def output(out: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return `out` after checking it, or a new tensor."""
    if out is None:
        return torch.empty(shape, dtype=dtype)
    expect(
        out.shape == shape and out.is_contiguous() and out.dtype is dtype,
        f"out must be {shape} {dtype}, contiguous",
        out,
    )
    return out


def address(tensor: Tensor | None) -> int:
    """Return where a tensor's data lies, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def packed_buffer(size_bytes: int) -> Tensor:
    """Allocate memory for packed weights, on huge pages where the system grants them."""
    buffer = torch.empty(size_bytes, dtype=torch.uint8)
    if size_bytes >= HUGE_PAGE_BYTES:
        _cpu.advise_huge_pages(buffer.data_ptr(), size_bytes)
    return buffer
