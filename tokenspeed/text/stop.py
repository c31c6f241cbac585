# SPDX-License-Identifier: MIT
"""Stop strings over a stream of text, across every boundary between pieces.

In: text in pieces. Out: text that certainly precedes any stop string, and the stop string once one is
complete. Only the longest tail that could still begin a stop string is held back. The first stop string to be
*completed* wins (the longer of two completed by the same character), so the result does not depend on how the
text was cut.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenspeed.text.overlap import tail_overlap


class StopScanner:
    """Watches one sequence; `hit` is the stop string that ended it, or None."""

    __slots__ = ("_held", "_include", "_stops", "hit")

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        if not all(stops):
            raise ValueError("a stop string cannot be empty")
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self.hit: str | None = None

    def feed(self, text: str) -> str:
        """Take a piece; return the text now certain. After a hit everything is swallowed."""
        if not self._stops or self.hit is not None:
            return text if self.hit is None else ""
        buffer = self._held + text
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := buffer.find(stop)) >= 0]
        if ends:
            end, at, self.hit = min(ends)
            self._held = ""
            return buffer[: end if self._include else at]
        keep = max(tail_overlap(buffer, stop) for stop in self._stops)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep]

    def flush(self) -> str:
        """End of the sequence: nothing can be completed any more."""
        held, self._held = self._held, ""
        return held
