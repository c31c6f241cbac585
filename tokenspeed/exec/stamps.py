# SPDX-License-Identifier: MIT
"""Stamps: what the memory of a KV block must hold, checked before anybody reads it again.

    checksum = sum over tensors t of c_t * (sum over words i of a_i * w_t,i)      modulo 2^64, all a and c odd
    stamp    = (checksum + name * odd) * odd ^ epoch

In: an arena, block ids, names (half of the block's keyed hash: tenant, history and tokens). Out: stamps, and
which blocks do not bear theirs. A word is 2 or 4 bytes, whatever the KV is made of; one changed word always
changes the sum, other changes are missed with a probability of 2^-31 or less (multilinear hashing, Carter and
Wegman 1979). Words that swap places, blocks that do, a block of another history or tenant, and one of another
epoch do not match. Plain torch, the same on every device, `CHUNK` blocks at a time.

A stamp is made once a block is frozen and looked at when the block is found for a request, and on each copy
between tiers; not while a request reads on. `sampled` keeps stamps of one block in sixteen, chosen by name.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tokenspeed.exec.arena import Arena

CHUNK: Final = 16
SAMPLE: Final = 16
_WORDS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
_ODD: Final = 0x9E3779B97F4A7C15 - (1 << 64)
_ODDS_SEED: Final = 0x5453


class Checksums:
    """The checksum of blocks of one arena's shape: of the arena's own, or packed as `bytes` of a tier."""

    def __init__(self, arena: Arena) -> None:
        self.tensors = [  # float8 as bytes: not every device can gather it
            tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor for tensor in arena.tensors()
        ]
        self.sizes = [tensor[0].nbytes for tensor in self.tensors]
        self.block_bytes = sum(self.sizes)
        words = max(
            size // tensor.element_size() for size, tensor in zip(self.sizes, self.tensors, strict=True)
        )
        generator = torch.Generator().manual_seed(_ODDS_SEED)
        odds = torch.randint(-(1 << 62), 1 << 62, (words + len(self.sizes),), generator=generator) * 2 + 1
        self._odds = odds[:words].to(self.tensors[0].device)
        self._tensor_odds = odds[words:].tolist()
        self._host_odds = odds[:words]

    def of_blocks(self, blocks: torch.Tensor) -> torch.Tensor:
        """[n] int64 of the arena's `blocks` [n] int64."""
        parts = [self._sum([tensor[chunk] for tensor in self.tensors]) for chunk in blocks.split(CHUNK)]
        return torch.cat(parts) if parts else blocks

    def of_packed(self, packed: torch.Tensor) -> torch.Tensor:
        """[n] int64 of blocks packed one after another, uint8 [n, block_bytes]."""
        return self._sum(
            [
                part.contiguous().view(tensor.dtype)
                for part, tensor in zip(packed.split(self.sizes, dim=1), self.tensors, strict=True)
            ]
        )

    def _sum(self, parts: list[torch.Tensor]) -> torch.Tensor:
        odds = self._odds if parts[0].device == self._odds.device else self._host_odds
        total = torch.zeros(len(parts[0]), dtype=torch.int64, device=parts[0].device)
        for part, odd in zip(parts, self._tensor_odds, strict=True):
            words = part.flatten(1).view(_WORDS[part.element_size()])
            total += (words * odds[: words.shape[1]]).sum(1) * odd
        return total


class Stamps:
    """The stamps of one arena's blocks."""

    def __init__(self, checksums: Checksums, blocks: int, *, sampled: bool, epoch: int) -> None:
        self.checksums = checksums
        self._sampled = sampled
        self._epoch = epoch
        self._device = checksums.tensors[0].device
        self._stamps = torch.zeros(blocks, dtype=torch.int64, device=self._device)

    def chosen(self, names: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of these are stamped at all."""
        return (names % SAMPLE == 0) if self._sampled else np.ones(len(names), np.bool_)

    def freeze(self, blocks: NDArray[np.int32], names: NDArray[np.uint64]) -> None:
        """These blocks will not be written again."""
        mask = self.chosen(names)
        if mask.any():
            at = self._ids(blocks[mask])
            self._stamps[at] = self._of(self.checksums.of_blocks(at), names[mask])

    def put(self, blocks: NDArray[np.int32], names: NDArray[np.uint64], sums: torch.Tensor) -> None:
        """These blocks came from a tier, with checksums [n] int64 that were right there."""
        self._stamps[self._ids(blocks)] = self._of(sums.to(self._device), names)

    def unlike(
        self, blocks: NDArray[np.int32], names: NDArray[np.uint64], sums: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[n] bool on the device: the block does not bear the stamp of this name; all of `blocks` are chosen."""
        at = self._ids(blocks)
        found = self.checksums.of_blocks(at) if sums is None else sums
        return self._of(found, names) != self._stamps[at]

    def _of(self, sums: torch.Tensor, names: NDArray[np.uint64]) -> torch.Tensor:
        named = torch.from_numpy(names.view(np.int64).copy()).to(sums.device)
        return (sums + named * _ODD) * _ODD ^ self._epoch

    def _ids(self, blocks: NDArray[np.int32]) -> torch.Tensor:
        return torch.from_numpy(blocks.astype(np.int64)).to(self._device)
