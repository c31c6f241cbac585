# SPDX-License-Identifier: MIT
"""One tool call written as a JSON object, read character by character: `{"name": ..., "arguments": ...}`.

In: the text after a call's opening marker, in pieces. Out: pieces of the arguments as the model wrote them,
as early as the name allows. The end of the object is found by its own brackets, so a closing marker inside a
string is just text. Nothing is repaired: arguments of a truncated call stay truncated.

    open -> key -> colon -> value -> comma -> key ... -> end
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from tokenspeed.text.events import CallStatus
from tokenspeed.text.tools.spec import JsonCalls

_SPACE: Final = " \t\r\n"
_State = Literal["open", "key", "colon", "value", "comma", "end"]


class JsonCallReader:
    """Reads one object. `name` is known before any arguments are given out; until then `raw` is all of it."""

    __slots__ = (
        "_format",
        "_key",
        "_pending",
        "_scanner",
        "_seen_arguments",
        "_state",
        "_written",
        "name",
        "raw",
        "status",
    )

    def __init__(self, call_format: JsonCalls) -> None:
        self._format = call_format
        self._state: _State = "open"
        self._scanner: _ValueScanner | None = None
        self._key = ""
        self._pending = ""  # arguments read but not given out
        self._written: list[str] = []  # arguments given out
        self._seen_arguments = False
        self.name: str | None = None
        self.raw = ""
        self.status: CallStatus | Literal["rejected"] | None = None  # None while more text is wanted

    @property
    def started(self) -> bool:
        """The text is certainly a call: its name is known and its arguments have begun (or it has ended)."""
        return bool(self.name) and (self._seen_arguments or self.status == "complete")

    def feed(self, text: str) -> int:
        """Take a piece; return how many of its characters belong to the object."""
        at = 0
        while at < len(text) and self.status is None:
            at = self._scan(text, at) if self._scanner is not None else self._punctuate(text, at)
        if not self.started:
            self.raw += text[:at]
        return at

    def take_arguments(self) -> str:
        """Arguments read since the last call of this; empty until the call has started."""
        if not self.started:
            return ""
        taken, self._pending = self._pending, ""
        self._written.append(taken)
        return taken

    def flush(self) -> None:
        """The output ended here."""
        if self.status is None:
            self.status = "truncated" if self.name else "rejected"

    def _punctuate(self, text: str, at: int) -> int:
        """Consume one character between values."""
        character = text[at]
        if character in _SPACE:
            return at + 1
        match self._state, character:
            case ("open", "{"):
                self._state = "key"
            case ("key", '"'):
                self._scanner = _ValueScanner()
                return at
            case ("key" | "comma", "}"):
                self._finish()
            case ("colon", ":"):
                self._state = "value"
            case ("value", _):
                self._scanner = _ValueScanner()
                self._seen_arguments |= self._key == self._format.arguments_key
                return at
            case ("comma", ","):
                self._state = "key"
            case _:
                self.status = "malformed" if self.started else "rejected"
                return at
        return at + 1

    def _scan(self, text: str, at: int) -> int:
        """Consume characters of the current key or value."""
        scanner = self._scanner
        assert scanner is not None
        end = scanner.feed(text, at)
        piece = text[at:end]
        is_arguments = self._state == "value" and self._key == self._format.arguments_key
        if is_arguments and not scanner.is_string:
            self._pending += piece
        else:
            scanner.kept += piece
        if not scanner.done:
            return end
        self._scanner = None
        value = _text_of(scanner.kept) if scanner.is_string else None
        if self._state == "key":
            if value is None:
                self.status = "malformed" if self.started else "rejected"
            self._key, self._state = value or "", "colon"
            return end
        if is_arguments and scanner.is_string:
            # Some models quote the arguments once more.
            self._pending += scanner.kept if value is None else value
        elif self._key == self._format.name_key and self.name is None:
            self.name = value
        self._state = "comma"
        return end

    def _finish(self) -> None:
        self._state = "end"
        if not self.name:
            self.status = "rejected"
            return
        if not self._seen_arguments:
            self._pending = "{}"
        whole = "".join(self._written) + self._pending
        try:
            msgspec.json.decode(whole)
            self.status = "complete"
        except (msgspec.DecodeError, RecursionError):
            self.status = "malformed"
        self._seen_arguments = True


class _ValueScanner:
    """Finds the end of one JSON value by quotes and brackets; does not judge what is between them."""

    __slots__ = ("_depth", "_escaped", "_first", "_in_string", "done", "is_string", "kept")

    def __init__(self) -> None:
        self._first = True
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.is_string = False
        self.done = False
        self.kept = ""

    def feed(self, text: str, at: int) -> int:
        """Index after the last character of the value, or the end of `text` if it is not there."""
        for index in range(at, len(text)):
            if self._step(text[index]):
                self.done = True
                return index if self._is_bare_end(text[index]) else index + 1
        return len(text)

    def _step(self, character: str) -> bool:
        """Whether this character ends the value."""
        first, self._first = self._first, False
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
                return self._depth == 0
            return False
        if character == '"':
            self._in_string = True
            self.is_string |= first
            return False
        if character in "{[":
            self._depth += 1
            return False
        if character in "}]":
            self._depth -= 1
            return self._depth <= 0
        return self._depth == 0 and (character == "," or character in _SPACE)

    def _is_bare_end(self, character: str) -> bool:
        """A number or word ends before the character that follows it."""
        return not self.is_string and (self._depth < 0 or character == "," or character in _SPACE)


def _text_of(quoted: str) -> str | None:
    try:
        return msgspec.json.decode(quoted, type=str)
    except msgspec.DecodeError:
        return None
