# SPDX-License-Identifier: MIT
"""From what a body says of the form of its answer to a `Wanted`: what the dialects share.

In: tools as templates are told of them, and the fields of extensions. Out: values of `text.grammar`. Which field
means what is each dialect's own; sizes are priced by `text.grammar`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tokenspeed.base.errors import RequestError
from tokenspeed.serve.errors import out_of_range
from tokenspeed.text.grammar import AnyJson, Choice, Format, Grammar, JsonSchema, Regex, ToolOffer


class StructuredOutputs(msgspec.Struct, kw_only=True):
    """`structured_outputs`, beyond the dialects' own: exactly one of these."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


def offers(plain: Sequence[dict[str, Any]], param: str = "tools[{}].function.parameters") -> list[ToolOffer]:
    """Tools that may be called; `param` is where the body holds the schema of the one at an index."""
    made: list[ToolOffer] = []
    for index, tool in enumerate(plain):
        function = tool["function"]
        schema, strict = function.get("parameters"), function.get("strict") is True
        made.append(ToolOffer(function["name"], schema or None, strict, param.format(index)))
    return made


def format_of(asked: StructuredOutputs, param: str = "structured_outputs") -> Format:
    """The one format that is asked for."""
    given = {
        name: value for name, value in msgspec.structs.asdict(asked).items() if value not in (None, False)
    }
    if len(given) != 1:
        raise out_of_range(
            param, f"an object with {len(given)} formats", "one of json, regex, choice, grammar, json_object"
        )
    match next(iter(given.items())):
        case "json", schema:
            return JsonSchema(_schema(schema, f"{param}.json"))
        case "regex", pattern:
            return Regex(pattern)
        case "choice", options:
            return Choice(tuple(options))
        case "grammar", lark:
            return Grammar(lark)
        case _:
            return AnyJson()


def _schema(schema: dict[str, Any] | str, param: str) -> dict[str, Any]:
    """A schema that may be text of JSON."""
    if not isinstance(schema, str):
        return schema
    try:
        return msgspec.json.decode(schema, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"{param} is not a JSON object", code="invalid_type", param=param) from error
