# SPDX-License-Identifier: MIT
"""Lists of memory that a kernel may fetch for those that run after it.

In: tensors that lie where they are for good (weights). Out: the addresses of their pieces, as a tensor that a
kernel can read. A kernel that takes such a list never needs it: it says what else to ask the memory for while
the memory would idle.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Final

import torch
from torch import Tensor

PIECE_BYTES: Final = 4096


def pieces(tensors: Iterable[Tensor], bytes_max: int) -> Tensor | None:
    """Addresses [n] int64 of the first whole pieces of contiguous tensors, on their device; None for no tensors."""
    whole = list(tensors)
    starts = list(itertools.islice(_starts(whole), bytes_max // PIECE_BYTES))
    return torch.tensor(starts, dtype=torch.int64, device=whole[0].device) if starts else None


def _starts(tensors: Iterable[Tensor]) -> Iterator[int]:
    for tensor in tensors:
        assert tensor.is_contiguous(), "only what lies in one piece can be cut into pieces"
        count = tensor.numel() * tensor.element_size() // PIECE_BYTES
        yield from (tensor.data_ptr() + piece * PIECE_BYTES for piece in range(count))
