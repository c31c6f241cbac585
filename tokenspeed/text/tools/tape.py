# SPDX-License-Identifier: MIT
"""The text of one output as a reader sees it: a front that is consumed, and an end that grows.

Readers are generators: they yield where they need more text and go on when there is more, so a format is read
in the order in which it is written, whatever the pieces. `text` is what is not consumed yet; after `ended`
there will be no more and nothing yields. A decision is only taken on text that no further text could change,
which is why every cutting of an output gives the same result.

What is held back is bounded by the markers looked for, so a piece costs what its own length costs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import cache
from typing import Final, TypeAlias, TypeVar

from tokenspeed.text.tools.json_text import JsonScanner

_T = TypeVar("_T")
Reading: TypeAlias = Generator[None, None, _T]
"""A reader under way; what it returns is what it read."""

BLANKS: Final = " \t\r\n"
LOOKAHEAD: Final = 64  # blanks looked past for what may come after them


class Marks:
    """Markers looked for together. With `followers`, a marker counts only where one of them comes next.

    No marker begins with another. Made once for each set of markers (`marks`), and then only read.
    """

    __slots__ = ("_firsts", "_followers", "_window", "markers")

    def __init__(self, markers: tuple[str, ...], followers: tuple[str, ...] = ()) -> None:
        self.markers = markers
        self._followers = followers
        self._window = LOOKAHEAD + max(map(len, followers), default=0)
        firsts = "".join(dict.fromkeys(marker[0] for marker in markers))
        self._firsts = re.compile(f"[{re.escape(firsts)}]") if firsts else None

    def find(self, text: str) -> tuple[int, str | None]:
        """Where the first marker stands, and which; or where one could still begin, and None."""
        at = 0
        while self._firsts is not None and (candidate := self._firsts.search(text, at)) is not None:
            at = candidate.start()
            for marker in self.markers:
                if text.startswith(marker, at):
                    follows = self._follows(text, at + len(marker))
                    if follows is not False:
                        return at, marker if follows else None
                elif len(text) - at < len(marker) and marker.startswith(text[at:]):
                    return at, None
            at += 1
        return len(text), None

    def _follows(self, text: str, at: int) -> bool | None:
        """Whether a follower comes at `at`; None when that cannot be said yet."""
        if not self._followers:
            return True
        rest = text[at : at + self._window].lstrip(BLANKS)
        if any(map(rest.startswith, self._followers)):
            return True
        if any(follower.startswith(rest) for follower in self._followers):
            # Perhaps it will be one; past the window, never.
            return False if len(text) - at >= self._window else None
        return False


@cache
def marks(markers: tuple[str, ...], followers: tuple[str, ...] = ()) -> Marks:
    """The `Marks` of these markers. They come from specs, so there are few."""
    return Marks(markers, followers)


class Tape:
    """The text and the ways to consume it."""

    __slots__ = ("_kept", "ended", "text")

    def __init__(self) -> None:
        self.text = ""
        self.ended = False
        self._kept: list[str] | None = None

    def keep(self, *consumed: str) -> None:
        """From here on remember what is consumed, as if `consumed` had been already."""
        self._kept = list(consumed)

    def forget(self) -> None:
        """What is consumed from here on will not be asked for."""
        self._kept = None

    def give_back(self) -> str:
        """What was consumed since `keep`."""
        kept, self._kept = self._kept, None
        return "".join(kept or ())

    def take(self, length: int) -> str:
        """Consume so many characters."""
        taken, self.text = self.text[:length], self.text[length:]
        if self._kept is not None:
            self._kept.append(taken)
        return taken

    def take_all(self) -> str:
        return self.take(len(self.text))

    def skip(self, characters: str, most: int | None = None) -> Reading[None]:
        """Consume a run of these characters, of at most `most`."""
        while True:
            run = len(self.text) - len(self.text.lstrip(characters))
            if most is not None:
                run = min(run, most)
                most -= run
            self.take(run)
            if self.text or self.ended or most == 0:
                return
            yield

    def leading(self) -> Reading[int]:
        """How many blanks come before something else; -1 if too many to wait any longer."""
        while True:
            count = len(self.text) - len(self.text.lstrip(BLANKS))
            if count > LOOKAHEAD:
                return -1
            if count < len(self.text) or self.ended:
                return count
            yield

    def run(self, pattern: re.Pattern[str], most: int) -> Reading[str]:
        """Consume what matches `pattern`, a run of single characters, of at most `most`."""
        read = ""
        while True:
            matched = pattern.match(self.text, 0, most - len(read))
            read += self.take(0 if matched is None else matched.end())
            if self.text or self.ended or len(read) == most:
                return read
            yield

    def next_of(self, *literals: str) -> Reading[str | None]:
        """Which of these comes next, without consuming it; None if none does."""
        while True:
            text = self.text
            for literal in literals:
                if text.startswith(literal):
                    return literal
            if self.ended or not any(literal.startswith(text) for literal in literals):
                return None
            yield

    def literal(self, literal: str) -> Reading[bool]:
        """Consume this text if it comes next."""
        if (yield from self.next_of(literal)) is None:
            return False
        self.take(len(literal))
        return True

    def marker(self, parts: tuple[str, ...]) -> Reading[bool]:
        """Consume the parts of a marker, with blanks before each; it may fail half-way."""
        for part in parts:
            yield from self.skip(BLANKS)
            if not (yield from self.literal(part)):
                return False
        return True

    def upto(self, marks: Marks, emit: Callable[[str], None], newlines: int = 0) -> Reading[str | None]:
        """Emit the text before the first of `marks`, consume that and return it; None at the end.

        Up to `newlines` newlines before it are dropped with it; `keep` begins with them and the marker. At the end,
        what could have been the beginning of these stays on the tape.
        """
        while True:
            at, found = marks.find(self.text)
            end = at
            while end and at - end < newlines and self.text[end - 1] == "\n":
                end -= 1
            if end:
                emit(self.take(end))
            if found is not None:
                self.keep()
                self.take(at - end + len(found))
                return found
            if self.ended:
                return None
            yield

    def json_value(self, emit: Callable[[str], None]) -> Reading[bool]:
        """Emit one JSON value as it is written; False if the output ended inside it."""
        scanner = JsonScanner()
        while True:
            length = scanner.feed(self.text)
            if length:
                emit(self.take(length))
            if scanner.done or self.ended:
                return scanner.done
            yield
