# SPDX-License-Identifier: MIT
"""The OpenAPI document of this server: what the routes take, from the very types that bodies are decoded to.

In: routes with their bodies' types. Out: a document. Fields that are ignored on purpose are listed as `x-ignored`;
what a field means is in `docs/reference`. Answers are described by their media types alone: each dialect's own
document has their shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tokenspeed import __version__

_REF: Final = "#/components/schemas/{name}"
_SHORTER: Final = ((b"tokenspeed.serve.", b""), (b".schema.", b"."))  # names of types that two dialects have
_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    summary: str
    body: type[msgspec.Struct] | None = None
    media: tuple[str, ...] = (_JSON,)

    @classmethod
    def generating(cls, summary: str, body: type[msgspec.Struct]) -> Operation:
        """One whose answer is a document or a stream of events."""
        return cls(summary, body, (_JSON, _EVENTS))


def document(operations: Mapping[tuple[str, str], Operation]) -> bytes:
    """The document of operations by method (in small letters) and path, as JSON."""
    bodies = [operation.body for operation in operations.values() if operation.body is not None]
    _, components = msgspec.json.schema_components(bodies, ref_template=_REF)
    for body in bodies:
        _note_ignored(components, body)
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in operations.items():
        paths.setdefault(path.replace(":path}", "}"), {})[method] = _operation(path, operation)
    made = {
        "openapi": "3.1.0",
        "info": {
            "title": "TokenSpeed",
            "version": __version__,
            "description": "See docs/reference for the meaning of fields.",
        },
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"x-api-key": []}],
        "paths": paths,
    }
    text = msgspec.json.format(msgspec.json.encode(made), indent=1)
    for long, short in _SHORTER:
        text = text.replace(long, short)
    return text + b"\n"


def _operation(path: str, operation: Operation) -> dict[str, Any]:
    made: dict[str, Any] = {"summary": operation.summary}
    names = [part[1:-1].partition(":")[0] for part in path.split("/") if part.startswith("{")]
    if names:
        made["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if operation.body is not None:
        schema = {"$ref": _REF.format(name=operation.body.__name__)}
        made["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    made["responses"] = {
        "200": {"description": "the answer", "content": {media: {} for media in operation.media}},
        "default": {"description": "an error in the dialect's shape", "content": {_JSON: {}}},
    }
    return made


def _note_ignored(components: dict[str, Any], kind: type[msgspec.Struct]) -> None:
    ignored = getattr(kind, "ignored", None)
    if ignored:
        components[kind.__name__]["x-ignored"] = sorted(ignored)
