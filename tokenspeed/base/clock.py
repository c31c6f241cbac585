# SPDX-License-Identifier: MIT
"""Time as an input: components take a `Clock`, so that tests and the simulator own it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of microseconds that never runs backwards."""

    def now_us(self) -> int: ...


class MonotonicClock:
    """The machine's monotonic clock; one epoch for all processes of a host."""

    def now_us(self) -> int:
        return time.monotonic_ns() // 1000


class FakeClock:
    """A clock that moves only when told to."""

    def __init__(self, start_us: int = 0) -> None:
        self._now_us = start_us

    def now_us(self) -> int:
        return self._now_us

    def advance_us(self, delta_us: int) -> None:
        """Move forward by `delta_us >= 0`."""
        if delta_us < 0:
            raise ValueError(f"a clock cannot go back by {-delta_us} us")
        self._now_us += delta_us
