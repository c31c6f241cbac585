# SPDX-License-Identifier: MIT
"""JSON as a stream of characters: where a value ends, and how text becomes a string of it."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

_STRING_STOP: Final = re.compile(r'["\\]')
# No JSON has these two outside strings, but the markers of most dialects begin with one.
_MARKUP: Final = "<`"
_STRUCTURE: Final = re.compile(rf'["{{}}\[\]{_MARKUP}]')
_SCALAR_STOP: Final = re.compile(rf"[,}}\]\s{_MARKUP}]")
_encode = json.JSONEncoder(ensure_ascii=False).encode


class JsonScanner:
    """Finds the end of one value by quotes and brackets; does not judge what is between them.

    Where brackets are missing, markup that follows ends it. It keeps nothing of the text, looks at each character
    once, and jumps to those that matter.
    """

    __slots__ = ("_depth", "_escaped", "_in_scalar", "_in_string", "done")

    def __init__(self) -> None:
        self._in_scalar = False
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.done = False

    def feed(self, text: str) -> int:
        """Take a piece; return how many of its characters belong to the value."""
        at, end = 0, len(text)
        while at < end and not self.done:
            if self._in_string:
                at = self._skip_string(text, at)
            elif self._depth or (text[at] in '"{[' and not self._in_scalar):
                at = self._skip_structure(text, at)
            else:
                self._in_scalar = True
                stop = _SCALAR_STOP.search(text, at)
                self.done = stop is not None
                at = end if stop is None else stop.start()
        return at

    def _skip_string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        stop = _STRING_STOP.search(text, at)
        if stop is None:
            return len(text)
        if stop.group() == "\\":
            self._escaped = True
        else:
            self._in_string = False
            self.done = self._depth == 0
        return stop.end()

    def _skip_structure(self, text: str, at: int) -> int:
        stop = _STRUCTURE.search(text, at)
        if stop is None:
            return len(text)
        match stop.group():
            case '"':
                self._in_string = True
            case "{" | "[":
                self._depth += 1
            case character if character in _MARKUP:
                self.done = True
                return stop.start()
            case _:
                self._depth -= 1
                self.done = self._depth == 0
        return stop.end()


def quoted(text: str) -> str:
    """A string of JSON."""
    return _encode(text)


def escaped(text: str) -> str:
    """What stands between the quotes; the pieces of a text escaped one by one join to the whole escaped."""
    return _encode(text)[1:-1]


def decoded(text: str) -> Any:
    """The value of JSON; `ValueError` if it is none.

    The decoder refuses numbers that no float holds and halves of surrogate pairs, which JSON has.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        try:
            return json.loads(text, parse_constant=_no_json)
        except RecursionError as error:
            raise ValueError("nested too deep") from error


def is_json(text: str) -> bool:
    try:
        decoded(text)
    except ValueError:
        return False
    return True


def _no_json(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def text_of(quoted_text: str) -> str | None:
    """The text of a JSON string; None if it is none."""
    try:
        return msgspec.json.decode(quoted_text, type=str)
    except msgspec.DecodeError:
        return None
