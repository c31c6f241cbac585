# SPDX-License-Identifier: MIT
"""Where a step's results reach the host: pinned memory, allocated once and used in turn.

In: tensors on the device. Out: tensors on the host that hold them once the event behind the copies has
passed. A landing is overwritten by the next step but one, which is launched after its own step was read. On
a CPU the results are copied at once and there is no event.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

IN_FLIGHT_MAX: Final = 2
"""Steps launched and not yet read: the one that runs and the one behind it."""


class _Landing:
    """Room for one step's results."""

    def __init__(self, rows: int, tokens: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.chosen = torch.zeros(rows, dtype=torch.int32, pin_memory=pinned)
        self.finite = torch.zeros(tokens, dtype=torch.bool, pin_memory=pinned)
        self.copied = torch.Event(device) if device.type != "cpu" else None


class Landings:
    """The landings of one executor, for results of at most `rows` rows and `tokens` tokens."""

    def __init__(self, rows: int, tokens: int, device: torch.device) -> None:
        self._landings = [_Landing(rows, tokens, device) for _ in range(IN_FLIGHT_MAX)]
        self._turn = 0

    def land(self, chosen: Tensor, finite: Tensor | None) -> tuple[Tensor, Tensor | None, torch.Event | None]:
        """Start the copies; (chosen [S], finite [T], the event behind them) on the host."""
        landing = self._landings[self._turn]
        self._turn = (self._turn + 1) % len(self._landings)
        landed = landing.chosen[: len(chosen)].copy_(chosen, non_blocking=True)
        finite_landed = None
        if finite is not None:
            finite_landed = landing.finite[: len(finite)].copy_(finite, non_blocking=True)
        if landing.copied is not None:
            landing.copied.record()
        return landed, finite_landed, landing.copied
