# SPDX-License-Identifier: MIT
"""Looks into a tool's JSON schema for what dialects of elements must know: which arguments there are, and how one
is written bare.

In: schemas of callers, already priced. Out: arguments in their declared order; alternatives of one type each.
What cannot be said by elements raises `UnsaidError`. Whether a schema is valid is the compiler's question.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from tokenspeed.text.tools.schema import resolve

_NOTES: Final = frozenset(
    (
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "format",
        "nullable",
    )
)
"""Keywords that forbid nothing."""
_COMBINATORS: Final = (
    "anyOf", "oneOf", "allOf", "not", "if", "patternProperties", "propertyNames", "dependentRequired",
    "dependentSchemas", "minProperties", "maxProperties", "unevaluatedProperties",
)  # fmt: skip
_REFERENCES_MAX: Final = 16
_DEFINITIONS: Final = ("$defs", "definitions")


class UnsaidError(Exception):
    """A schema that the dialect's way of writing arguments cannot be held to; says which part."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a tool."""

    name: str
    schema: dict[str, Any]
    required: bool


def resolved(schema: Any, root: dict[str, Any]) -> dict[str, Any]:
    """What a schema refers to, or itself."""
    for _ in range(_REFERENCES_MAX):
        if not isinstance(schema, dict):
            return {}
        if not isinstance(schema.get("$ref"), str):
            return schema
        schema = resolve(schema["$ref"], root)
    raise UnsaidError("references that go round")


def arguments(root: dict[str, Any], *, strict: bool) -> list[Argument]:
    """The arguments a schema declares. Strict: all that it asks of the object as a whole must be said."""
    found = [name for name in _COMBINATORS if name in root]
    if strict and found:
        raise UnsaidError(f"{found[0]} at its root")
    properties = root.get("properties")
    declared: dict[str, Any] = properties if isinstance(properties, dict) else {}
    wanted = root.get("required")
    required = {name for name in wanted if isinstance(name, str)} if isinstance(wanted, list) else set[str]()
    names = dict.fromkeys((*declared, *sorted(required)))
    made = (Argument(name, declared.get(name) or {}, name in required) for name in names)
    return [argument for argument in made if argument.required or declared[argument.name] is not False]


def branches(schema: Any, root: dict[str, Any]) -> list[dict[str, Any]]:
    """A schema as alternatives of one type each; `UnsaidError` where it is more than that."""
    return list(_branches(schema, root, 0))


def _branches(schema: Any, root: dict[str, Any], depth: int) -> Iterator[dict[str, Any]]:
    own = resolved(schema, root)
    if depth > _REFERENCES_MAX or any(name in own for name in ("allOf", "not", "if")):
        raise UnsaidError("an argument that combines schemas")
    alternatives = [each for name in ("anyOf", "oneOf") for each in own.get(name) or ()]
    if alternatives:
        rest = {name: value for name, value in own.items() if name not in ("anyOf", "oneOf")}
        if not rest.keys() <= _NOTES | {"type"}:
            raise UnsaidError("an argument that combines schemas")
        for each in alternatives:
            yield from _branches(each, root, depth + 1)
    else:
        kinds = own.get("type")
        for kind in kinds if isinstance(kinds, list) else [kinds]:
            yield {**own, "type": kind} if kind is not None else own
    if own.get("nullable") is True:
        yield {"type": "null"}


def is_text(branch: dict[str, Any]) -> bool:
    """Whether an alternative is a string and nothing else."""
    return branch.get("type") == "string"


def is_plain(branch: dict[str, Any]) -> bool:
    """Whether an alternative takes all values of its type."""
    return "type" in branch and branch.keys() <= _NOTES | {"type"}


def standing_alone(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """A part of a schema as a document of its own; `UnsaidError` if it refers to what it does not bring."""
    for reference in _references(schema, root):
        if not any(reference.startswith(f"#/{name}/") for name in _DEFINITIONS):
            raise UnsaidError(f"the reference {reference[:100]}")
    return {**{name: root[name] for name in _DEFINITIONS if name in root}, **schema}


def _references(schema: Any, root: dict[str, Any]) -> Iterator[str]:
    waiting = [schema, *(root[name] for name in _DEFINITIONS if name in root)]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if isinstance(each.get("$ref"), str):
                yield each["$ref"]
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
