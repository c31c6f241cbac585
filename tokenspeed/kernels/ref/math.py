# SPDX-License-Identifier: MIT
"""The two rules of precision that all references share: compute wide, round once.

`wide` raises a tensor to float32 (float64 stays), `finish` rounds a result to the caller's dtype, into `out`
if given.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Return x in the dtype that references compute in: float32, or float64 for float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def finish(result: Tensor, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    """Round a wide result to `dtype`; with `out`, write it there and return it."""
    return result.to(dtype) if out is None else out.copy_(result)
