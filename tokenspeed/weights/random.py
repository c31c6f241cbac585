# SPDX-License-Identifier: MIT
"""Random weights of true shapes: seeded, independent of loading order, equal slice for slice when sharded.

Values come from one tape of normal deviates read from an offset drawn from the tensor's name, so that
filling costs a copy and not a draw per element. The tape's length is prime: rows never line up with it.
"""

from __future__ import annotations

import hashlib
import math

import torch

from tokenspeed.weights.parameter import Fill

_TAPE_LENGTH = 4_194_301


class Tape:
    """A reel of seeded normal deviates."""

    def __init__(self, seed: int, std: float, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._seed = seed
        values = (torch.randn(_TAPE_LENGTH, generator=generator) * std).to(device, dtype)
        self._values = values.repeat(2)  # so that a read of up to one length is a view, wherever it starts

    def read(self, fill: Fill) -> torch.Tensor:
        """The region `fill.take` of the random tensor `fill.source`; it may share memory with the tape."""
        digest = hashlib.blake2b(f"{self._seed}/{fill.source}".encode(), digest_size=8).digest()
        start = int.from_bytes(digest, "little") % _TAPE_LENGTH
        rows, rest = fill.take[0], fill.take[1:]
        row_elements = math.prod(fill.shape[1:])
        first = (start + rows.start * row_elements) % _TAPE_LENGTH
        count = (rows.stop - rows.start) * row_elements
        flat = self._values[first:] if count <= _TAPE_LENGTH else self._unroll(first, count)
        return flat[:count].view(rows.stop - rows.start, *fill.shape[1:])[(slice(None), *rest)]

    def _unroll(self, first: int, count: int) -> torch.Tensor:
        repeats = -(-(first + count) // _TAPE_LENGTH)
        return self._values[:_TAPE_LENGTH].repeat(repeats)[first:]
