# SPDX-License-Identifier: MIT
"""What penalised requests have said so far: how often each token is in the output, which tokens are in the
prompt.

In: prompts and outputs when a slot is bound; then `sampling.note` counts each chosen token. Out: the tables
that `sampling.adjust` looks back on, and the line of each slot. Only slots whose request sets a penalty take
a line of V counts; lines are given back when the slot is bound anew, so memory follows the largest number of
penalised requests at once. Never waits for the device.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class History:
    """Lines of counts, one for each penalised slot."""

    __slots__ = ("_free", "_line_of", "counts", "in_prompt")

    def __init__(self, vocab: int, device: torch.device) -> None:
        self._line_of: dict[int, int] = {}
        self._free: list[int] = []
        self.counts = torch.zeros(0, vocab, dtype=torch.int32, device=device)
        """[lines, V]: how often each token was said."""
        self.in_prompt = torch.zeros(0, vocab, dtype=torch.bool, device=device)
        """[lines, V]: whether it was asked."""

    @property
    def lines(self) -> int:
        """How many lines are allocated."""
        return self.counts.shape[0]

    def bind(self, slot: int, prompt: NDArray[np.int32], output: NDArray[np.int32]) -> int:
        """Give a slot a line that holds what was said before; which."""
        if slot not in self._line_of:
            self._line_of[slot] = self._free.pop() if self._free else self._grow()
        line = self._line_of[slot]
        self.in_prompt[line].zero_().index_fill_(0, self._ids(prompt), 1)
        ids = self._ids(output)
        self.counts[line].zero_().index_add_(0, ids, torch.ones_like(ids, dtype=torch.int32))
        return line

    def release(self, slot: int) -> None:
        """Take the line of a slot back, if it has one."""
        line = self._line_of.pop(slot, None)
        if line is not None:
            self._free.append(line)

    def _ids(self, tokens: NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(tokens.astype(np.int64)).to(self.counts.device, non_blocking=True)

    def _grow(self) -> int:
        """Double the lines; return the first new one."""
        before = self.lines
        more = max(1, before)
        self.counts = torch.nn.functional.pad(self.counts, (0, 0, 0, more))
        self.in_prompt = torch.nn.functional.pad(self.in_prompt, (0, 0, 0, more))
        self._free.extend(range(before + more - 1, before, -1))
        return before
