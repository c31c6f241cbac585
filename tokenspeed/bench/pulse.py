# SPDX-License-Identifier: MIT
"""Was the client itself on time? A beat on its event loop that notes how late it came at most.

A client that was stopped, starved or paused for two seconds reports two seconds that no server took; its level
is then invalid. What delays the beat delays every other reading of the clock on that loop.
"""

from __future__ import annotations

import asyncio
from typing import Final

from tokenspeed.base.clock import Clock

PERIOD_US: Final = 50_000


class Pulse:
    """The beat of one level."""

    def __init__(self, clock: Clock) -> None:
        self.late_us = 0
        self._clock = clock

    async def beat(self) -> None:
        """Beat until cancelled."""
        while True:
            began_us = self._clock.now_us()
            try:
                await asyncio.sleep(PERIOD_US / 1e6)
            finally:
                self.late_us = max(self.late_us, self._clock.now_us() - began_us - PERIOD_US)
