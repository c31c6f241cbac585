# SPDX-License-Identifier: MIT
"""Custom tools, whose input is one text and no JSON: to the model, functions of one string.

In: the JSON arguments of such a call, in pieces. Out: the text of that string, in pieces, as soon as it is sure.
Arguments that are anything else are the text themselves, once they are whole.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

PARAMETER: Final = "input"
_HEAD: Final = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_HEAD_CHARACTERS_MAX: Final = 64
_SURE: Final = re.compile(
    r'(?:[^"\\]|\\["\\/bfnrt]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}'
    r"|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4})*"
)
"""Characters of a JSON string whose meaning nothing after them can change."""


def parameters(format_text: str) -> dict[str, Any]:
    """The schema of a custom tool's arguments."""
    text = {"type": "string", "description": format_text or "The whole input of the tool."}
    return {"type": "object", "properties": {PARAMETER: text}, "required": [PARAMETER]}


def arguments(text: str) -> dict[str, str]:
    """The arguments that say `text`."""
    return {PARAMETER: text}


class InputReader:
    """Reads the arguments of one call."""

    def __init__(self) -> None:
        self._rest = ""
        self._all: list[str] = []
        self._said = False
        self._in_text = False

    def feed(self, piece: str) -> str:
        """More arguments; the text that is sure by now and was not before."""
        self._all.append(piece)
        self._rest += piece
        if not self._in_text:
            head = _HEAD.match(self._rest)
            if head is None:
                return ""
            self._in_text = self._said = True
            self._rest = self._rest[head.end() :]
        sure = _SURE.match(self._rest)
        assert sure is not None
        self._rest = self._rest[sure.end() :]
        return msgspec.json.decode(f'"{sure[0]}"', type=str, strict=False) if sure[0] else ""

    def end(self) -> str:
        """The text that is left once the arguments are whole."""
        return "" if self._said else "".join(self._all)
