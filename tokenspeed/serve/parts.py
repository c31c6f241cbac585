# SPDX-License-Identifier: MIT
"""The events of one answer as the parts it consists of: reasoning, texts and calls, one after the other.

In: events of `text.events`, as they come. Out: what happens to parts, each opened, grown and closed before the
next opens; and the parts themselves, whole. For dialects whose answers are lists of blocks or items: what they
stream and what they answer whole are two spellings of the same parts. A text of nothing but white space is no
part. It knows no dialect.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from tokenspeed.text.events import (
    ArgumentsDelta,
    CallEnd,
    CallStart,
    CallStatus,
    Content,
    Event,
    Reasoning,
)

PartKind = Literal["reasoning", "text", "call"]


@dataclass(slots=True, eq=False)
class Part:
    """One part; `pieces` joined are its text, or a call's arguments. `status` is set once it is closed."""

    kind: PartKind
    index: int
    name: str = ""
    id: str = ""
    pieces: list[str] = field(default_factory=list[str])
    status: CallStatus | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Opened:
    part: Part


@dataclass(frozen=True, slots=True)
class Grown:
    part: Part
    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    part: Part


Change = Opened | Grown | Closed


class Parts:
    """One answer's parts. Iterate `changes` of each batch of events; `end` closes what is still open."""

    def __init__(self) -> None:
        self.all: list[Part] = []
        self._open: Part | None = None
        self._blank = ""  # white space that may begin a text

    def changes(self, events: Iterable[Event]) -> Iterator[Change]:
        """What events do, in order."""
        for event in events:
            match event:
                case Content(text):
                    yield from self._content(text)
                case Reasoning(text):
                    yield from self._grow("reasoning", text)
                case CallStart():
                    yield from self._opened(Part("call", len(self.all), event.name, event.id or ""))
                case ArgumentsDelta(_, text):
                    yield from self._grow("call", text)
                case CallEnd(_, status):
                    yield from self.end(status)

    def grown(self, events: list[Event]) -> Grown | None:
        """What events do where all they do is to add to the open part; None elsewhere, and nothing is done."""
        if len(events) != 1 or self._open is None:
            return None
        match self._open.kind, events[0]:
            case (
                ("text", Content(text)) | ("reasoning", Reasoning(text)) | ("call", ArgumentsDelta(_, text))
            ) if text:
                self._open.pieces.append(text)
                return Grown(self._open, text)
            case _:
                return None

    def end(self, status: CallStatus = "complete") -> Iterator[Change]:
        """Close the open part, if there is one."""
        self._blank = ""
        if self._open is not None:
            part, self._open = self._open, None
            part.status = status
            yield Closed(part)

    def _content(self, text: str) -> Iterator[Change]:
        if self._open is None or self._open.kind != "text":
            self._blank += text
            if not self._blank.strip():
                return
            text = self._blank
        yield from self._grow("text", text)

    def _grow(self, kind: PartKind, text: str) -> Iterator[Change]:
        if not text:
            return
        if self._open is None or self._open.kind != kind:
            yield from self._opened(Part(kind, len(self.all)))
        assert self._open is not None
        self._open.pieces.append(text)
        yield Grown(self._open, text)

    def _opened(self, part: Part) -> Iterator[Change]:
        yield from self.end()
        self.all.append(part)
        self._open = part
        yield Opened(part)


def parts_of(events: Iterable[Event], status: CallStatus = "complete") -> list[Part]:
    """All parts of a whole answer; `status` is what becomes of one that is open at its end."""
    parts = Parts()
    for _ in (*parts.changes(events), *parts.end(status)):
        pass
    return parts.all
