# SPDX-License-Identifier: MIT
"""Types of arguments, from the JSON schemas of the tools on offer: for dialects that write values without quotes.

In: tools as the API takes them. Out: the JSON types an argument may have, and the JSON text of a value that was
written bare. It does not validate: a value of the wrong type goes out as the model wrote it. Schemas are the
caller's and may be anything; what cannot be understood is unknown, and unknown is a string.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from tokenspeed.text.tools.json_text import decoded, quoted

_SCHEMAS_MAX: Final = 64  # references and alternatives followed for one argument
_PYTHON_WORDS: Final = {"True": "true", "False": "false", "None": "null"}
_STRING: Final = frozenset({"string"})
ANY: Final = frozenset({"object", "array", "number", "boolean", "null"})
"""Of a value whose markup says that it is no string."""


class ArgumentTypes:
    """What the tools of one request say of their arguments. Schemas are looked into when a call asks."""

    __slots__ = ("_schemas",)

    def __init__(self, tools: Iterable[Any] | None = None) -> None:
        functions = [tool.get("function") if isinstance(tool, dict) else None for tool in tools or ()]
        self._schemas: dict[str, Any] = {
            function["name"]: function.get("parameters")
            for function in functions
            if isinstance(function, dict) and isinstance(function.get("name"), str)
        }

    def of(self, function: str, argument: str) -> frozenset[str]:
        """The JSON types of an argument; `{"string"}` where nothing is known."""
        root = self._schemas.get(function)
        if not isinstance(root, dict):
            return _STRING
        properties = root.get("properties")
        own = properties.get(argument) if isinstance(properties, dict) else None
        found = _types(root.get("additionalProperties") if own is None else own, root)
        return frozenset(found) or _STRING


def json_of(text: str, types: frozenset[str]) -> str:
    """JSON of a value written bare whose type is not just string: what it is in JSON if that may be, or a string."""
    bare = text.strip()
    bare = _PYTHON_WORDS.get(bare, bare)
    try:
        value = decoded(bare)
    except ValueError:
        return quoted(text)
    # Where a string is allowed too, only a value of another allowed type is not one.
    return quoted(text) if "string" in types and not _kinds(value) & types else bare


def _types(schema: Any, root: dict[str, Any]) -> set[str]:
    """Types of a schema, its alternatives and what it refers to; a schema past the bound is not looked at."""
    found: set[str] = set()
    waiting = [schema]
    for _ in range(_SCHEMAS_MAX):
        if not waiting:
            break
        each = waiting.pop()
        if not isinstance(each, dict):
            continue
        kind = each.get("type")
        found |= {name for name in (kind if isinstance(kind, list) else [kind]) if isinstance(name, str)}
        if each.get("nullable") is True:
            found.add("null")
        if isinstance(each.get("$ref"), str):
            waiting.append(resolve(each["$ref"], root))
        for name in ("anyOf", "oneOf", "allOf"):
            waiting += _list(each.get(name))[:_SCHEMAS_MAX]
        if kind is None:
            values = [*_list(each.get("enum")), *([each["const"]] if "const" in each else [])]
            found = found.union(*(_kinds(value) for value in values))
            found |= {name for name, sign in (("object", "properties"), ("array", "items")) if sign in each}
    return found


def resolve(reference: str, root: dict[str, Any]) -> Any:
    """What a reference inside the document points to."""
    at: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        at = at.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(at, dict) else None
    return at


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _kinds(value: Any) -> set[str]:
    match value:
        case None:
            return {"null"}
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number"}
        case str():
            return {"string"}
        case list():
            return {"array"}
        case _:
            return {"object"}
