# SPDX-License-Identifier: MIT
"""A client that was held up says so, and its level is invalid."""

from __future__ import annotations

import asyncio

from tokenspeed.base.clock import FakeClock
from tokenspeed.bench.pulse import PERIOD_US, Pulse
from tokenspeed.bench.validity import CLIENT_LATE_US_MAX, check_client


def test_the_longest_delay_of_a_beat_is_kept() -> None:
    async def held_up(*delays_us: int) -> int:
        clock = FakeClock()
        pulse = Pulse(clock)
        for delay_us in delays_us:
            task = asyncio.create_task(pulse.beat())
            await asyncio.sleep(0)  # it reads the clock
            clock.advance_us(PERIOD_US + delay_us)
            task.cancel()
            await asyncio.wait([task])
        return pulse.late_us

    assert asyncio.run(held_up(0)) == 0
    assert asyncio.run(held_up(10, 91_000_000, 20)) == 91_000_000


def test_a_client_that_was_late_fails_its_level() -> None:
    assert check_client(0).passed
    assert check_client(CLIENT_LATE_US_MAX).passed
    late = check_client(91_000_000)
    assert (late.passed, late.said) == (False, "held up for 91 s at most")
