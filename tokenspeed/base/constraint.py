# SPDX-License-Identifier: MIT
"""What an answer must look like, as it travels: made by the front, compiled and obeyed by the core.

In: nothing but values. Out: one immutable struct on the wire. `text.grammar.constraint_for` makes it and has
priced it; nothing here understands the grammar.
"""

from __future__ import annotations

import msgspec


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    """A grammar of whole answers, reasoning and markup included. Equal values are compiled once."""

    grammar: str
    """In the Lark dialect of llguidance, over the text of an answer as parsers of answers see it."""
    param: str = "response_format"
    """The field of the request that asked for it, named in errors."""
