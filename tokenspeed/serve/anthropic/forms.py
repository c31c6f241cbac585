# SPDX-License-Identifier: MIT
"""The form of an answer as Anthropic's bodies ask for it: tool_choice, strict tools, output formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tokenspeed.serve.anthropic.schema import MessagesBody, OutputFormat
from tokenspeed.serve.errors import out_of_range, refused
from tokenspeed.text.grammar import Format, JsonSchema, ToolOffer, Wanted

TOOL_CHOICES: Final = ("auto", "any", "tool", "none")


def wanted_of(body: MessagesBody, tools: Sequence[ToolOffer], *, in_reasoning: bool) -> Wanted:
    """What a body wants; `tools` are those on offer."""
    configured = None if body.output_config is None else body.output_config.format
    if configured is not None and body.output_format is not None:
        raise refused("output_format", "not beside output_config.format; send one of them")
    choice = body.tool_choice
    kind = "auto" if choice is None else choice.type
    if kind not in TOOL_CHOICES:
        raise out_of_range("tool_choice.type", repr(kind[:100]), f"one of {', '.join(TOOL_CHOICES)}")
    if choice is not None and kind == "tool" and not choice.name:
        raise out_of_range("tool_choice.name", "missing", "the name of a tool")
    param = "output_format" if configured is None else "output_config.format"
    return Wanted(
        format=_format(configured or body.output_format, param),
        format_param=param,
        tools=tools,
        choice="required" if kind in ("any", "tool") else "auto",
        named=choice.name if choice is not None and kind == "tool" else None,
        parallel=choice is None or not choice.disable_parallel_tool_use,
        in_reasoning=in_reasoning,
    )


def _format(asked: OutputFormat | None, param: str) -> Format | None:
    if asked is None:
        return None
    if asked.type != "json_schema":
        raise out_of_range(f"{param}.type", repr(asked.type[:100]), "'json_schema'")
    if asked.schema is None:
        raise out_of_range(f"{param}.schema", "missing", "a JSON schema")
    return JsonSchema(asked.schema, strict=True)
