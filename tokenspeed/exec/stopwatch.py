# SPDX-License-Identifier: MIT
"""How long steps take on the device: laps of a stopwatch that never waits for it.

In: the moments at which a step's work is queued. Out: microseconds, once the step has been read. On a GPU two events of
the stream frame the step, so what is measured is the device's time, not the host's; on a CPU a step is done when its
last call returns. Laps are used in turn: as many as steps in flight, and one that is being read.
"""

from __future__ import annotations

import time

import torch

from tokenspeed.exec.landing import IN_FLIGHT_MAX


class Lap:
    """One step's time."""

    def __init__(self, device: torch.device) -> None:
        on_host = device.type == "cpu"
        self._events = (
            None
            if on_host
            else (torch.Event(device, enable_timing=True), torch.Event(device, enable_timing=True))
        )
        self._begun_ns = self._ended_ns = 0

    def begin(self) -> None:
        """What is queued from here on belongs to the step."""
        self._begun_ns = time.monotonic_ns()
        if self._events is not None:
            self._events[0].record()

    def end(self) -> None:
        """The step's last work is queued."""
        self._ended_ns = time.monotonic_ns()
        if self._events is not None:
            self._events[1].record()

    def us(self) -> int:
        """What the step took; only after its results were waited for."""
        if self._events is None:
            return (self._ended_ns - self._begun_ns) // 1000
        return round(1000 * self._events[0].elapsed_time(self._events[1]))


class Stopwatch:
    """The laps of one executor."""

    def __init__(self, device: torch.device) -> None:
        self._laps = [Lap(device) for _ in range(IN_FLIGHT_MAX + 1)]
        self._turn = 0

    def begin(self) -> Lap:
        """Start the next lap."""
        lap = self._laps[self._turn]
        self._turn = (self._turn + 1) % len(self._laps)
        lap.begin()
        return lap
