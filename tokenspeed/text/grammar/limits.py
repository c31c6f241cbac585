# SPDX-License-Identifier: MIT
"""What a constraint may cost, counted before any of it is compiled. Errors name the field.

The library bounds what it does itself, by fuel; these bounds keep its input small enough for that to be quick,
and shallow enough that no reader of it runs out of stack.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tokenspeed.base.errors import RequestError

SCHEMA_BYTES_MAX: Final = 128 << 10
GRAMMAR_BYTES_MAX: Final = 2 << 20  # of a whole constraint: the tools of an agent with room to spare
USER_GRAMMAR_BYTES_MAX: Final = 64 << 10
REGEX_CHARACTERS_MAX: Final = 8 << 10
DEPTH_MAX: Final = 64
CHOICES_MAX: Final = 1024
REPEAT_MAX: Final = 10_000
"""Largest length, number of items or of properties that a schema may name as a bound."""
LINES_MAX: Final = 512
"""Of a user's grammar, and so the rules that can lead from one to the next."""
CHAIN_MAX: Final = 1200
"""References of a schema times its depth: what the compiler may have to descend.
Measured: chains of 2400 levels compile, of 3000 overrun a stack of 8 MiB."""
_BOUNDS: Final = frozenset(
    ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
)


def too_large(param: str, what: str, size: int, most: int) -> RequestError:
    return RequestError(
        f"{param}: {what} {size} is more than the {most} that are compiled", code="invalid_value", param=param
    )


def check_size(param: str, what: str, size: int, most: int) -> None:
    if size > most:
        raise too_large(param, what, size, most)


def check_nesting(param: str, text: str) -> None:
    """Refuse text that opens more brackets inside each other than any reader needs, escaped or not."""
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}" and depth:
            depth -= 1
    check_size(param, "nesting of", deepest, DEPTH_MAX)


def check_schema(param: str, schema: Any) -> None:
    """Refuse a schema that is no object, too long, too deep, or that counts too far."""
    if not isinstance(schema, dict):
        raise RequestError(f"{param} must be a JSON schema, an object", code="invalid_type", param=param)
    check_size(param, "a schema of bytes", len(msgspec.json.encode(schema)), SCHEMA_BYTES_MAX)
    references: set[str] = set()
    deepest = 0
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        value, depth = waiting.pop()
        deepest = max(deepest, depth)
        check_size(param, "nesting of", depth, DEPTH_MAX)
        if isinstance(value, dict):
            for name, each in value.items():
                if name in _BOUNDS and isinstance(each, int | float):
                    check_size(param, name, int(min(each, 1e18)), REPEAT_MAX)
                elif name == "pattern" and isinstance(each, str):
                    check_size(param, "a pattern of characters", len(each), REGEX_CHARACTERS_MAX)
                    check_nesting(param, each)
                elif name == "$ref" and isinstance(each, str):
                    references.add(each)
                waiting.append((each, depth + 1))
        elif isinstance(value, list):
            waiting += [(each, depth + 1) for each in value]
    check_size(param, "references times depth", len(references) * deepest, CHAIN_MAX)


def check_grammar(param: str, grammar: str) -> None:
    """Refuse a user's grammar that is long, deep, or of many rules."""
    check_size(param, "a grammar of bytes", len(grammar.encode()), USER_GRAMMAR_BYTES_MAX)
    check_size(param, "a grammar of lines", grammar.count("\n") + 1, LINES_MAX)
    check_nesting(param, grammar)
