# SPDX-License-Identifier: MIT
"""What happened in a run, in order: the last events always, all of them on request, and counts of what was
reached.

Recording is on in every seed, so it must cost little: an event is a tuple, made into words only when
somebody reads it.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

from tokenspeed.base.clock import Clock

EVENTS_KEPT: Final = 60

Event = tuple[int, str, tuple[object, ...]]


class Trace:
    """The record of one seed. `aloud` prints each event as it happens."""

    def __init__(self, clock: Clock, *, aloud: bool = False) -> None:
        self._clock = clock
        self._aloud = aloud
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.reached: Counter[str] = Counter()

    def note(self, words: str, *values: object) -> None:
        """Record an event; `words` is a `str.format` pattern for the values."""
        event = (self._clock.now_us(), words, values)
        self._events.append(event)
        if self._aloud:
            print(_line(event))

    def lines(self) -> list[str]:
        """The events kept, oldest first, one line each."""
        return [_line(event) for event in self._events]


def _line(event: Event) -> str:
    now_us, words, values = event
    return f"{now_us / 1000:12.3f} ms  {words.format(*values)}"
