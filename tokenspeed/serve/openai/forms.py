# SPDX-License-Identifier: MIT
"""The form of an answer as OpenAI's bodies ask for it: response_format, tool_choice, structured_outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenspeed.serve.errors import out_of_range, refused
from tokenspeed.serve.forms import format_of
from tokenspeed.serve.openai.schema import ChatBody, ResponseFormat, SamplingBody
from tokenspeed.text.grammar import AnyJson, Format, JsonSchema, ToolOffer, Wanted


def wanted_of(body: SamplingBody) -> Wanted:
    """What a body wants of its text."""
    asked = body.response_format
    form = None if asked is None else _format(asked)
    if body.structured_outputs is not None:
        if form is not None:
            raise refused("structured_outputs", "not beside response_format; send one of them")
        wanted = Wanted(format=format_of(body.structured_outputs), format_param="structured_outputs")
    else:
        wanted = Wanted(format=form)
    return wanted


def chat_wanted_of(body: ChatBody, tools: Sequence[ToolOffer], *, in_reasoning: bool) -> Wanted:
    """What a chat body wants; `tools` are those on offer."""
    text = wanted_of(body)
    required, named = _choice(body.tool_choice)
    return Wanted(
        format=text.format,
        format_param=text.format_param,
        tools=tools,
        choice="required" if required else "auto",
        named=named,
        parallel=body.parallel_tool_calls is not False,
        in_reasoning=in_reasoning,
    )


def check_ending(body: SamplingBody, wanted: Wanted) -> None:
    """Refuse what a form that ends cannot go with."""
    if body.ignore_eos and not wanted.free:
        raise refused("ignore_eos", "not with a form of the answer: where that ends, the answer does")


def _format(asked: ResponseFormat) -> Format | None:
    match asked.type:
        case "text":
            return None
        case "json_object":
            return AnyJson()
        case "json_schema":
            document = asked.json_schema
            if document is None or document.schema is None:
                raise out_of_range("response_format.json_schema", "missing", "an object with name and schema")
            return JsonSchema(document.schema, document.strict is True)
        case kind:
            raise out_of_range(
                "response_format.type", repr(kind[:100]), "one of text, json_object, json_schema"
            )


def _choice(choice: str | dict[str, Any] | None) -> tuple[bool, str | None]:
    """Whether a call is required, and which."""
    match choice:
        case None | "auto" | "none":
            return False, None
        case "required":
            return True, None
        case {"type": "function", "function": {"name": str(name)}}:
            return True, name
        case _:
            raise out_of_range(
                "tool_choice",
                repr(choice)[:100],
                "'auto', 'none', 'required' or {'type': 'function', 'function': {'name': ...}}",
            )
