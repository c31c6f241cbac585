# SPDX-License-Identifier: MIT
"""What penalised requests have said so far: how often each token is in the output, which tokens are in the
prompt.

In: prompts and outputs when a slot is bound, then each chosen token. Out: penalised scores. Only slots whose
request sets a penalty take a line of V counts; lines are given back when the slot is bound anew, so memory
follows the largest number of penalised requests at once. Does not choose tokens; never waits for the device.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class History:
    """Lines of counts, one for each penalised slot."""

    __slots__ = ("_free", "_in_prompt", "_line_of", "_output_counts")

    def __init__(self, vocab: int, device: torch.device) -> None:
        self._line_of: dict[int, int] = {}
        self._free: list[int] = []
        self._output_counts = torch.zeros(0, vocab, dtype=torch.int32, device=device)
        self._in_prompt = torch.zeros(0, vocab, dtype=torch.bool, device=device)

    @property
    def lines(self) -> int:
        """How many lines are allocated."""
        return self._output_counts.shape[0]

    def bind(self, slot: int, prompt: NDArray[np.int32], output: NDArray[np.int32]) -> None:
        """Give a slot a line that holds what was said before."""
        if slot not in self._line_of:
            self._line_of[slot] = self._free.pop() if self._free else self._grow()
        line = self._line_of[slot]
        self._in_prompt[line] = False
        self._in_prompt[line, self._ids(prompt)] = True
        self._output_counts[line] = 0
        ids = self._ids(output)
        self._output_counts[line].index_add_(0, ids, torch.ones_like(ids, dtype=torch.int32))

    def release(self, slot: int) -> None:
        """Take the line of a slot back, if it has one."""
        line = self._line_of.pop(slot, None)
        if line is not None:
            self._free.append(line)

    def note(self, slots: NDArray[np.int32], tokens: Tensor) -> None:
        """Count one more token in each slot's output. slots: [S], tokens: [S] int64."""
        lines = self._lines(slots)
        ones = torch.ones(len(slots), dtype=torch.int32, device=tokens.device)
        self._output_counts.index_put_((lines, tokens), ones, accumulate=True)

    def penalised(
        self,
        scores: Tensor,
        slots: NDArray[np.int32],
        presence: Tensor,
        frequency: Tensor,
        repetition: Tensor,
    ) -> Tensor:
        """Return scores [S, V] with penalties applied; penalties are [S] float32."""
        lines = self._lines(slots)
        counts = self._output_counts[lines]
        said = counts > 0
        rate = torch.where(said | self._in_prompt[lines], repetition[:, None], 1.0)
        scores = torch.where(scores > 0, scores / rate, scores * rate)
        return scores - frequency[:, None] * counts - presence[:, None] * said

    def _lines(self, slots: NDArray[np.int32]) -> Tensor:
        lines = torch.tensor([self._line_of[int(slot)] for slot in slots])
        return lines.to(self._in_prompt.device, non_blocking=True)

    def _ids(self, tokens: NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(tokens.astype(np.int64)).to(self._in_prompt.device, non_blocking=True)

    def _grow(self) -> int:
        """Double the lines; return the first new one."""
        before = self.lines
        more = max(1, before)
        self._output_counts = torch.nn.functional.pad(self._output_counts, (0, 0, 0, more))
        self._in_prompt = torch.nn.functional.pad(self._in_prompt, (0, 0, 0, more))
        self._free.extend(range(before + more - 1, before, -1))
        return before
