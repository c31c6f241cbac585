# SPDX-License-Identifier: MIT
"""Bodies of the Responses dialect. Every field is honoured, refused with its name, or listed in `ignored`.

A field is absent when it is None. Types are checked by the decoder; what an item must hold beside its type, by
`items`. The fields of `OriginBody` and the last of a body are beyond OpenAI's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from tokenspeed.serve.origin import OriginBody


class ItemPart(msgspec.Struct, kw_only=True):
    """A part of a message, of an output, of a reasoning or of its summary."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Item(msgspec.Struct, kw_only=True):
    """One item of any type; which fields it needs follows from `type`, which a message may leave out."""

    type: str = "message"
    role: str | None = None
    content: str | list[ItemPart] | None = None
    summary: list[ItemPart] | None = None
    encrypted_content: str | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | dict[str, Any] | None = None
    input: str | None = None
    output: str | list[ItemPart] | None = None
    id: str | None = None

    ignored: ClassVar[frozenset[str]] = frozenset(
        {"status", "phase", "caller", "async", "internal_chat_message_metadata_passthrough"}
    )


class ToolFormat(msgspec.Struct, kw_only=True):
    """What the input of a custom tool looks like."""

    type: str
    syntax: str | None = None
    definition: str | None = None


class Tool(msgspec.Struct, kw_only=True):
    """A function, a custom tool (one text for all its input), or a namespace of both; any other is left out."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    format: ToolFormat | None = None
    tools: list[Tool] | None = None
    strict: bool | None = None

    ignored: ClassVar[frozenset[str]] = frozenset(
        {"defer_loading", "async", "allowed_callers", "output_schema"}
    )


class Reasoning(msgspec.Struct, kw_only=True):
    effort: str | None = None

    ignored: ClassVar[frozenset[str]] = frozenset({"summary", "generate_summary", "context"})


class TextFormat(msgspec.Struct, kw_only=True):
    type: str
    schema: dict[str, Any] | None = None
    strict: bool | None = None

    ignored: ClassVar[frozenset[str]] = frozenset({"name", "description"})


class TextConfig(msgspec.Struct, kw_only=True):
    format: TextFormat | None = None

    ignored: ClassVar[frozenset[str]] = frozenset({"verbosity"})


class ResponsesBody(OriginBody, kw_only=True):
    """POST /v1/responses."""

    input: str | list[Item]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = None
    store: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    # Beyond OpenAI's.
    chat_template_kwargs: dict[str, Any] | None = None
    # Refused where they ask for something.
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    top_logprobs: int | None = None

    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            "access_programs", "background_options", "client_metadata", "context_management", "image",
            "max_tool_calls", "moderation", "prompt_cache_options", "prompt_cache_retention", "safety_identifier",
            "service_tier", "stream_options", "truncation", "user",
        }
    )  # fmt: skip
