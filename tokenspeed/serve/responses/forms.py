# SPDX-License-Identifier: MIT
"""The form of an answer as the Responses dialect asks for it: tool_choice, strict tools, text.format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenspeed.serve.errors import out_of_range
from tokenspeed.serve.responses.items import flat_name
from tokenspeed.serve.responses.schema import ResponsesBody, TextFormat
from tokenspeed.text.grammar import AnyJson, Format, JsonSchema, ToolOffer, Wanted


def wanted_of(body: ResponsesBody, tools: Sequence[ToolOffer], *, in_reasoning: bool) -> Wanted:
    """What a body wants; `tools` are those on offer."""
    required, named, tools = _choice(body.tool_choice, tools)
    return Wanted(
        format=_format(None if body.text is None else body.text.format),
        format_param="text.format",
        tools=tools,
        choice="required" if required else "auto",
        named=named,
        parallel=body.parallel_tool_calls is not False,
        in_reasoning=in_reasoning,
    )


def _choice(
    choice: str | dict[str, Any] | None, tools: Sequence[ToolOffer]
) -> tuple[bool, str | None, Sequence[ToolOffer]]:
    """Whether a call is required, of which tool, and of which it may be."""
    match choice:
        case None | "auto" | "none":
            return False, None, tools
        case "required":
            return True, None, tools
        case {"type": "function" | "custom", "name": str(name)}:
            return True, flat_name(name, choice.get("namespace")), tools
        case {"type": "allowed_tools", "mode": "required", "tools": list(allowed)}:
            names = {
                flat_name(t["name"], t.get("namespace"))
                for t in allowed
                if isinstance(t, dict) and "name" in t
            }
            return True, None, [tool for tool in tools if tool.name in names]
        case _:
            raise out_of_range(
                "tool_choice",
                repr(choice)[:100],
                "'auto', 'none', 'required', {'type': 'function', 'name': ...}, or allowed_tools with mode 'required'",
            )


def _format(asked: TextFormat | None) -> Format | None:
    match None if asked is None else asked.type:
        case None | "text":
            return None
        case "json_object":
            return AnyJson()
        case "json_schema" if asked is not None:
            if asked.schema is None:
                raise out_of_range("text.format.schema", "missing", "a JSON schema")
            return JsonSchema(asked.schema, asked.strict is True)
        case kind:
            raise out_of_range(
                "text.format.type", repr(str(kind)[:100]), "one of text, json_object, json_schema"
            )
