# SPDX-License-Identifier: MIT
"""Lists of memory that a kernel may fetch for those that run after it.

In: tensors that lie where they are for good (weights). Out: the addresses of their pieces, as a tensor that a
kernel can read. A kernel that takes such a list never needs it: it says what else to ask the memory for while
the memory would idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

PIECE_BYTES: Final = 4096


def pieces(tensors: Sequence[Tensor]) -> Tensor | None:
    """Addresses [n] int64 of the whole pieces of contiguous tensors, on their device; None where there are none."""
    starts = [
        start
        for tensor in tensors
        for start in range(
            tensor.data_ptr(),
            tensor.data_ptr() + tensor.numel() * tensor.element_size() - PIECE_BYTES + 1,
            PIECE_BYTES,
        )
    ]
    return torch.tensor(starts, dtype=torch.int64, device=tensors[0].device) if starts else None
