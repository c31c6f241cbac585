# SPDX-License-Identifier: MIT
"""The last ten minutes, second by second: what readers got, and what the core said of itself.

In: events of the front with their times, the core's samples. Out: `Second`s, oldest first; a second in which
nothing happened has none. Bounded; a token costs a comparison and three additions. Holds no request.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from tokenspeed.obs.sample import CoreSample

SECONDS_MAX: Final = 600


@dataclass(slots=True)
class Second:
    """One second of the monotonic clock."""

    at_s: int
    tokens: int = 0
    """Output tokens that reached the front."""
    gaps: int = 0
    """Of those, tokens that follow another of their request."""
    gap_us_sum: int = 0
    """Time those were waited for, summed over requests: `gaps` over it is what one user sees."""
    first_tokens: int = 0
    first_token_us_sum: int = 0
    prompt_tokens: int = 0
    """Of requests that started."""
    cached_tokens: int = 0
    """Of those, found in the prefix tree."""
    core: CoreSample | None = None
    """The last sample of this second."""


class History:
    """The seconds of one engine."""

    def __init__(self) -> None:
        self._seconds: deque[Second] = deque(maxlen=SECONDS_MAX)

    def note_start(self, now_us: int, *, prompt_tokens: int, cached_tokens: int) -> None:
        second = self._at(now_us)
        second.prompt_tokens += prompt_tokens
        second.cached_tokens += cached_tokens

    def note_tokens(self, now_us: int, count: int, since_us: int, *, first: bool) -> None:
        """Tokens of one request came, `since_us` after its last, or after its arrival where they are its
        first.
        """
        second = self._at(now_us)
        second.tokens += count
        if first:
            second.first_tokens += 1
            second.first_token_us_sum += since_us
            second.gaps += count - 1
        else:
            second.gaps += count
            second.gap_us_sum += since_us

    def note_core(self, now_us: int, core: CoreSample) -> None:
        self._at(now_us).core = core

    def last(self, now_us: int, seconds: int) -> list[Second]:
        """The whole seconds that ended within the last `seconds`, oldest first."""
        now_s = now_us // 1_000_000
        return [second for second in self._seconds if now_s - seconds <= second.at_s < now_s]

    def _at(self, now_us: int) -> Second:
        at_s = now_us // 1_000_000
        if not self._seconds or self._seconds[-1].at_s < at_s:
            self._seconds.append(Second(at_s))
        return self._seconds[-1]
