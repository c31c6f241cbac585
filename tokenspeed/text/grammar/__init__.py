# SPDX-License-Identifier: MIT
"""Constrained answers: from what a request wants to a grammar, and from a grammar to masks of tokens.

`constraint` is the way in (`constraint_for`, pure); `dialect` writes calls as a family's spec says, so that the
parser of that spec reads every sentence back; `lark` writes grammars and `schema` looks into JSON schemas;
`limits` prices what users send. `matcher` compiles and walks grammars with llguidance and is all that knows it.
"""

from __future__ import annotations

from tokenspeed.text.grammar.constraint import (
    AnyJson,
    Choice,
    Format,
    Grammar,
    JsonSchema,
    Regex,
    ToolOffer,
    Wanted,
    constraint_for,
)

__all__ = [
    "AnyJson",
    "Choice",
    "Format",
    "Grammar",
    "JsonSchema",
    "Regex",
    "ToolOffer",
    "Wanted",
    "constraint_for",
]
