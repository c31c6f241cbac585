# SPDX-License-Identifier: MIT
"""Text in, events out: the one incremental parser, driven by a dialect's spec.

Streaming and whole answers use the same parser, and its events (merged) are equal for every cutting of the
text. It holds back only what could still be a marker, and newlines that belong to one. No text is lost: what
looked like a call and is none comes out as content. It knows nothing of token ids.

    head -> reasoning -> content <-> call -> tail -> content ...

Newlines next to a marker are part of the markup, as the templates write them.
"""

from __future__ import annotations

from typing import Final, Literal

from tokenspeed.text.events import ArgumentsDelta, CallEnd, CallStart, Content, Event, Reasoning, merged
from tokenspeed.text.overlap import tail_overlap
from tokenspeed.text.tools.json_call import JsonCallReader
from tokenspeed.text.tools.spec import Dialect

_NEWLINES: Final = "\n"
_BLANKS: Final = " \t\r\n"
_State = Literal["head", "reasoning", "content", "call", "tail"]


class OutputParser:
    """Parses one output. `in_reasoning`: the prompt already opened the reasoning; `calls`: look for calls."""

    def __init__(self, dialect: Dialect, *, in_reasoning: bool = False, calls: bool = True) -> None:
        self._reasoning = dialect.reasoning
        self._calls = dialect.calls if calls else None
        self._buffer = ""
        # Characters dropped where text would begin, until some has begun.
        self._skip = _NEWLINES if in_reasoning else ""
        self._gap = ""  # newlines taken off before the last marker
        self._lead = ""  # what was taken as markup before the call being read; given back if it is none
        self._reader: JsonCallReader | None = None
        self._index = -1
        self._announced = False
        self._out: list[Event] = []
        if in_reasoning and self._reasoning is not None:
            self._state: _State = "reasoning"
        else:
            self._state = "content" if self._reasoning is None else "head"

    def feed(self, text: str) -> list[Event]:
        """Take a piece of text; return what it made certain."""
        self._buffer += text
        while self._advance():
            pass
        return self._drain()

    def flush(self) -> list[Event]:
        """The output ended: whatever is held back is what it is."""
        if self._reader is not None:
            self._reader.flush()
            self._report_call()
        held, self._buffer = self._buffer, ""
        if self._state == "reasoning":
            self._out.append(Reasoning(held.lstrip(self._skip)))
        elif self._state != "tail":
            self._out.append(Content(held.lstrip(self._skip)))
        return self._drain()

    def _drain(self) -> list[Event]:
        drained, self._out = self._out, []
        return merged(drained)

    def _advance(self) -> bool:
        """Make one move; False when more text is needed."""
        match self._state:
            case "head":
                return self._advance_head()
            case "reasoning":
                return self._advance_reasoning()
            case "content":
                return self._advance_content()
            case "call":
                return self._advance_call()
            case "tail":
                return self._advance_tail()

    def _advance_head(self) -> bool:
        assert self._reasoning is not None
        start = self._buffer.lstrip(_BLANKS)
        if start.startswith(self._reasoning.open):
            self._buffer = start.removeprefix(self._reasoning.open)
            self._state, self._skip = "reasoning", _NEWLINES
            return True
        if self._reasoning.open.startswith(start):
            return False
        self._state = "content"
        return True

    def _advance_reasoning(self) -> bool:
        assert self._reasoning is not None
        text, found = self._text_before(self._reasoning.close)
        self._out.append(Reasoning(text))
        if found:
            self._state, self._skip = "content", _NEWLINES
        return found

    def _advance_content(self) -> bool:
        if self._calls is None:
            text, self._buffer = self._buffer.lstrip(self._skip), ""
            self._out.append(Content(text))
            self._skip = "" if text else self._skip
            return False
        text, found = self._text_before(self._calls.open)
        self._out.append(Content(text))
        if found:
            self._begin_call(self._gap + self._calls.open)
        return found

    def _advance_call(self) -> bool:
        assert self._reader is not None
        consumed = self._reader.feed(self._buffer)
        self._buffer = self._buffer[consumed:]
        self._report_call()
        return self._state != "call"

    def _advance_tail(self) -> bool:
        """After a call: its closing marker, another object, or whatever comes instead."""
        assert self._calls is not None
        # A stray closing brace after the object is a common slip and means nothing.
        self._buffer = self._buffer.lstrip(_BLANKS + "}")
        if self._buffer.startswith("{"):
            self._begin_call("")
            return True
        if self._calls.close.startswith(self._buffer):
            if self._buffer != self._calls.close:
                return False
            self._buffer = ""
        self._buffer = self._buffer.removeprefix(self._calls.close)
        self._state, self._skip = "content", _BLANKS
        return True

    def _text_before(self, marker: str) -> tuple[str, bool]:
        """Take the text certain to precede `marker` off the buffer, and whether the marker was there.

        If it was, it is taken too, with the newlines before it (`_gap`).
        """
        self._buffer = self._buffer.lstrip(self._skip)
        at = self._buffer.find(marker)
        found = at >= 0
        end = at if found else len(self._buffer) - tail_overlap(self._buffer, marker)
        text = self._buffer[:end].rstrip(_NEWLINES)
        if text or found:
            self._skip = ""
        if found:
            self._gap = self._buffer[len(text) : end]
            self._buffer = self._buffer[end + len(marker) :]
        else:
            self._buffer = self._buffer[len(text) :]
        return text, found

    def _begin_call(self, lead: str) -> None:
        assert self._calls is not None
        self._lead = lead
        self._reader = JsonCallReader(self._calls)
        self._announced = False
        self._state = "call"

    def _report_call(self) -> None:
        reader = self._reader
        assert reader is not None
        if reader.status == "rejected" and not self._announced:
            self._out.append(Content(self._lead + reader.raw))
            self._reader, self._state, self._skip = None, "content", ""
            return
        if not self._announced and reader.name and (reader.started or reader.status is not None):
            self._index += 1
            self._announced = True
            self._out.append(CallStart(self._index, reader.name))
        if self._announced:
            self._out.append(ArgumentsDelta(self._index, reader.take_arguments()))
        if reader.status is not None:
            status = "malformed" if reader.status == "rejected" else reader.status
            self._out.append(CallEnd(self._index, status))
            self._reader, self._state = None, "tail"
