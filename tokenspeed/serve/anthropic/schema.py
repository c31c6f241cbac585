# SPDX-License-Identifier: MIT
"""Bodies of the Anthropic dialect. Every field is honoured, refused with its name, or listed in `ignored`.

A field is absent when it is None. Types are checked by the decoder; what a block must hold beside its type, by
`blocks`. The fields of `OriginBody` and the last of a body are beyond Anthropic's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from tokenspeed.serve.origin import OriginBody


class CacheControl(msgspec.Struct):
    type: str = "ephemeral"
    ttl: str | None = None
    """How long the client expects to pause: 5m or 1h."""
    ignored: ClassVar[frozenset[str]] = frozenset({"scope"})


class Source(msgspec.Struct, kw_only=True):
    """Where the content of a document is: in `data` as text, or in `content` as blocks."""

    type: str
    media_type: str | None = None
    data: str | None = None
    content: str | list[Block] | None = None


class Block(msgspec.Struct, kw_only=True):
    """One content block of any type; which fields it needs follows from `type`."""

    type: str
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: Any = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None
    title: str | None = None
    context: str | None = None
    source: Source | str | None = None
    tool_name: str | None = None
    cache_control: CacheControl | None = None

    ignored: ClassVar[frozenset[str]] = frozenset({"citations", "caller", "toolset_name"})


class InputMessage(msgspec.Struct, kw_only=True):
    role: str
    content: str | list[Block]

    ignored: ClassVar[frozenset[str]] = frozenset({"cache_control", "id", "type"})


class Tool(msgspec.Struct, kw_only=True):
    """A tool of the client's, or, by a `type` of its own, one of Anthropic's servers, which is left out."""

    name: str | None = None
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None

    ignored: ClassVar[frozenset[str]] = frozenset(
        {"input_examples", "eager_input_streaming", "defer_loading", "allowed_callers"}
    )


class ToolChoice(msgspec.Struct, kw_only=True):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(msgspec.Struct, kw_only=True):
    type: str
    display: str | None = None

    ignored: ClassVar[frozenset[str]] = frozenset({"budget_tokens"})


class OutputFormat(msgspec.Struct, kw_only=True):
    type: str
    schema: dict[str, Any] | None = None

    ignored: ClassVar[frozenset[str]] = frozenset({"name"})


class OutputConfig(msgspec.Struct, kw_only=True):
    effort: str | None = None
    format: OutputFormat | None = None

    ignored: ClassVar[frozenset[str]] = frozenset({"task_budget"})


class Metadata(msgspec.Struct):
    user_id: str | None = None


class CountBody(msgspec.Struct, kw_only=True):
    """POST /v1/messages/count_tokens."""

    messages: list[InputMessage]
    model: str | None = None
    system: str | list[Block] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            "cache_control", "max_tokens", "stream", "metadata", "temperature", "context_management", "betas",
            "speed", "user_profile_id", "workspace_id",
        }
    )  # fmt: skip


class MessagesBody(OriginBody, kw_only=True):
    """POST /v1/messages."""

    messages: list[InputMessage]
    model: str | None = None
    system: str | list[Block] | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    metadata: Metadata | None = None
    cache_control: CacheControl | None = None
    # Beyond Anthropic's.
    chat_template_kwargs: dict[str, Any] | None = None
    # Refused where they ask for something.
    mcp_servers: list[Any] | None = None

    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            "betas", "billing_policy", "compaction", "container", "context_management", "diagnostics",
            "fallback_credit_token", "fallbacks", "inference_geo", "service_tier", "speed", "thread",
            "user_profile_id", "workspace_id",
        }
    )  # fmt: skip
