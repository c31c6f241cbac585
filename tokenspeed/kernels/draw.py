# SPDX-License-Identifier: MIT
"""Seeded random inputs for the shape generators of ops.

In: a seed and a device. Out: tensors. Numbers are drawn on the CPU and then moved, so that a seed gives the
same inputs on every device. Used by the test harness and by the benchmark; it knows nothing of ops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Table:
    """A paged context: which blocks hold which row, and where the new tokens of the step go."""

    blocks_total: int
    block_table: torch.Tensor  # [R, B] int32, unused entries -1
    context_lens: torch.Tensor  # [R] int32
    row_starts: torch.Tensor  # [R + 1] int32
    positions: torch.Tensor  # [T] int64
    write_index: torch.Tensor  # [T] int64, block * P + offset; -1 in a row of no context
    unused: torch.Tensor  # [N, P] bool: places that hold no context of any row


class Draw:
    """A stream of random tensors; the same seed and the same calls give the same stream."""

    __slots__ = ("_generator", "device")

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
        """Draw a contiguous tensor of normal numbers with the given standard deviation."""
        values = torch.randn(shape, generator=self._generator, dtype=torch.float32) * scale
        return values.to(dtype).to(self.device)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Draw whole numbers in [low, high)."""
        values = torch.randint(low, high, shape, generator=self._generator, dtype=torch.int64)
        return values.to(dtype).to(self.device)

    def permutation(self, count: int) -> torch.Tensor:
        """Draw an order of 0..count-1."""
        return torch.randperm(count, generator=self._generator).to(self.device)

    def table(self, contexts: Sequence[int], lengths: Sequence[int], block_tokens: int) -> Table:
        """Lay rows out over scattered blocks, some of the pool unused, unused entries of the table -1.

        A row of no context is padding: its tokens stand at position 0 and are written nowhere (-1).
        """
        counts = [-(-context // block_tokens) for context in contexts]
        blocks_total = sum(counts) + 2
        order = self.permutation(blocks_total).cpu()
        block_table = torch.full((len(contexts), max(counts) + 1), -1, dtype=torch.int32)
        positions: list[torch.Tensor] = []
        places: list[torch.Tensor] = []
        unused = torch.ones(blocks_total * block_tokens, dtype=torch.bool)
        used = 0
        for row, (context, length, count) in enumerate(zip(contexts, lengths, counts, strict=True)):
            block_table[row, :count] = order[used : used + count].to(torch.int32)
            used += count
            position = torch.arange(context)
            place = block_table[row, position // block_tokens].long() * block_tokens + position % block_tokens
            unused[place] = False
            positions.append(position[-length:] if context else torch.zeros(length, dtype=torch.int64))
            places.append(place[-length:] if context else torch.full((length,), -1))
        starts = torch.tensor([0, *lengths]).cumsum(0)
        return Table(
            blocks_total=blocks_total,
            block_table=block_table.to(self.device),
            context_lens=torch.tensor(contexts, dtype=torch.int32, device=self.device),
            row_starts=starts.to(torch.int32).to(self.device),
            positions=torch.cat(positions).to(self.device),
            write_index=torch.cat(places).to(self.device),
            unused=unused.view(blocks_total, block_tokens).to(self.device),
        )

    def arena(self, table: Table, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Draw an arena [N, P, *shape]; places without context are NaN, so that reading them shows."""
        values = self.normal(*table.unused.shape, *shape, dtype=dtype)
        values[table.unused] = torch.nan
        return values

    def queries(self, *shape: int, dtype: torch.dtype, last: float = 25.0) -> torch.Tensor:
        """Draw queries [T, ...], the last `last` times as long: at 25 an unshifted softmax overflows."""
        values = self.normal(*shape, dtype=dtype)
        values[-1] *= last
        return values
