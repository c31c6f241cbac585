# SPDX-License-Identifier: MIT
"""Grammars as text, in the Lark dialect of llguidance: literals, expressions, rules.

Rules hold words and are in lower case; a lexeme is one regular expression. A lazy lexeme ends where it first may,
which is how text up to a marker is said: a greedy one would take the beginning of the marker with it.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

_SPECIAL: Final = re.compile(r"[\\.+*?()|\[\]{}^$/&~#\-]")
_OPTIONS: Final = '%llguidance {"no_forcing": true}'
"""Any split of a text into tokens is a sentence: the model says which, as it was taught."""
_JSON_OPTIONS: Final = {"whitespace_pattern": r"[ ]|\n[ \t]{0,40}"}
"""Between two words of JSON nothing, a space, or a new line and its indent: as people write it, and no more of it,
for a model that is forced on where it wants to end writes white space for ever.
"""


class Rules:
    """The rules of one grammar, in order. Names given twice with one body are one rule."""

    def __init__(self) -> None:
        self._bodies: dict[str, str] = {}
        self._names: dict[str, str] = {}  # of bodies that are shared

    def add(self, name: str, body: str) -> str:
        """Define a rule; its name."""
        assert name not in self._bodies
        self._bodies[name] = body
        return name

    def shared(self, stem: str, body: str) -> str:
        """A rule with this body, whatever its name; `stem` may bring options in brackets."""
        key = f"{stem}:{body}"
        if key not in self._names:
            name, bracket, options = stem.partition("[")
            self._names[key] = f"{name}_{len(self._names)}"
            self._bodies[self._names[key] + bracket + options] = body
        return self._names[key]

    def text(self, start: str) -> str:
        """The whole grammar."""
        lines = [_OPTIONS, f"start: {start}", *(f"{name}: {body}" for name, body in self._bodies.items())]
        return "\n".join(lines) + "\n"


def literal(text: str) -> str:
    """A text as a word of a rule; nothing for no text."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def escaped(text: str) -> str:
    """A text inside a regular expression."""
    return _SPECIAL.sub(r"\\\g<0>", text).replace("\n", r"\n").replace("\r", r"\r").replace("\t", r"\t")


def upto(*markers: str) -> str:
    """Body of a lazy rule: any text up to and with the first of the markers."""
    return f"/(?s:.*)({'|'.join(map(escaped, markers))})/"


def without(*markers: str) -> str:
    """Body of a terminal: text that holds none of the markers."""
    return f"/(?s:.*)/ & ~/(?s:.*)({'|'.join(map(escaped, markers))})(?s:.*)/"


def either(*alternatives: str) -> str:
    """One of these."""
    return alternatives[0] if len(alternatives) == 1 else "(" + " | ".join(alternatives) + ")"


def words(*parts: str) -> str:
    """These in a row, empty ones left out."""
    return " ".join(part for part in parts if part)


def json_value(schema: dict[str, Any], *, lenient: bool) -> str:
    """A JSON value of this schema; `lenient` lets keywords pass that no grammar can say."""
    options = {**_JSON_OPTIONS, "lenient": lenient}
    return "%json " + json.dumps({**schema, "x-guidance": options}, ensure_ascii=False)


def with_options(grammar: str) -> str:
    """A user's grammar under our options, which come last so that they hold."""
    return f"{grammar}\n{_OPTIONS}\n"
