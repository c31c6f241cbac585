# SPDX-License-Identifier: MIT
"""Messages, system and tools of the Anthropic dialect as the plain values a chat template is given.

A user's message becomes one message per tool result and one per run of texts between them, in their order. An
assistant's becomes one: its thinking as reasoning, its texts joined, its calls. What a provider's own tools left
behind in a history is left out; images and other data that this model cannot read are refused with their place.
Each message is read by itself, so that a history read in pieces is the history read whole.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tokenspeed.base.errors import RequestError
from tokenspeed.serve.anthropic.schema import Block, InputMessage, Source, Tool
from tokenspeed.serve.body import BodyReader
from tokenspeed.serve.errors import out_of_range, refused
from tokenspeed.serve.pseudo_headers import without_pseudo_headers
from tokenspeed.serve.reading import Document, Tools
from tokenspeed.serve.seal import Seal
from tokenspeed.text.chat_template import Message
from tokenspeed.text.grammar import ToolOffer

ROLES: Final = ("user", "assistant", "system")
PROVIDERS_BLOCKS: Final = (
    "server_tool_use", "web_search_tool_result", "web_fetch_tool_result", "code_execution_tool_result",
    "bash_code_execution_tool_result", "text_editor_code_execution_tool_result", "tool_search_tool_result",
    "advisor_tool_result", "mcp_tool_use", "mcp_tool_result", "mcp_tool_listing", "container_upload",
    "tool_addition", "tool_removal", "fallback",
)  # fmt: skip
"""Blocks of tools that run on a provider's servers: of no meaning to another model, so they are left out."""
_LINES: Final = "\n"


def plain_messages(documents: list[Document], bodies: BodyReader, seal: Seal) -> list[Message]:
    """Messages for the template; unknown fields of theirs are logged once per name."""
    messages = msgspec.convert(documents, list[InputMessage], str_keys=True)
    plain: list[Message] = []
    for index, (message, document) in enumerate(zip(messages, documents, strict=True)):
        bodies.note_unknown(document, InputMessage, "messages[].")
        if message.role not in ROLES:
            raise out_of_range(
                f"messages[{index}].role", repr(message.role[:100]), f"one of {', '.join(ROLES)}"
            )
        at = f"messages[{index}].content"
        if isinstance(message.content, str):
            plain.append({"role": message.role, "content": message.content})
            continue
        for block in document["content"]:
            bodies.note_unknown(block, Block, "messages[].content[].")
        match message.role:
            case "assistant":
                plain.append(_assistant(message.content, at, seal))
            case "user":
                plain += _user(message.content, at)
            case _:
                plain.append({"role": "system", "content": _text(message.content, at)})
    return plain


def plain_system(system: str | list[Block] | None) -> list[Message]:
    """The system text as a message, or none."""
    blocks = [Block(type="text", text=system)] if isinstance(system, str) else system or []
    texts = [_text_of(block, f"system[{index}]") for index, block in enumerate(blocks)]
    text = _LINES.join(filter(None, map(without_pseudo_headers, filter(None, texts))))
    return [{"role": "system", "content": text}] if text else []


def plain_tools(documents: list[Document]) -> Tools | None:
    """Tools for the template, or None if there are none of the client's own."""
    plain: list[Document] = []
    offers: list[ToolOffer] = []
    for index, tool in enumerate(msgspec.convert(documents, list[Tool], str_keys=True)):
        if tool.type not in (None, "custom"):
            continue
        if not tool.name:
            raise refused(f"tools[{index}].name", "missing; a tool of the client's needs one")
        function: Document = {"name": tool.name, "description": tool.description or ""}
        function["parameters"] = tool.input_schema or {"type": "object", "properties": {}}
        plain.append({"type": "function", "function": function})
        offers.append(
            ToolOffer(tool.name, tool.input_schema, tool.strict is True, f"tools[{index}].input_schema")
        )
    return Tools(plain, offers=tuple(offers)) if plain else None


def _user(blocks: list[Block], at: str) -> list[Message]:
    plain: list[Message] = []
    texts: list[str] = []

    def flush() -> None:
        if texts:
            plain.append({"role": "user", "content": _LINES.join(texts)})
            texts.clear()

    for index, block in enumerate(blocks):
        if block.type != "tool_result":
            text = _text_of(block, f"{at}[{index}]")
            texts += [] if text is None else [text]
            continue
        flush()
        result = _result(block, f"{at}[{index}]")
        plain.append({"role": "tool", "tool_call_id": block.tool_use_id or "", "content": result})
    flush()
    return plain or [{"role": "user", "content": ""}]


def _assistant(blocks: list[Block], at: str, seal: Seal) -> Message:
    reasoning: list[str] = []
    texts: list[str] = []
    calls: list[Document] = []
    for index, block in enumerate(blocks):
        match block.type:
            case "thinking":
                reasoning.append(block.thinking or seal.open(block.signature or "") or "")
            case "redacted_thinking":
                reasoning.append(seal.open(block.data or "") or "")
            case "tool_use":
                calls.append(_call(block, f"{at}[{index}]"))
            case _:
                texts.append(_text_of(block, f"{at}[{index}]") or "")
    message: Message = {"role": "assistant", "content": "".join(texts) or (None if calls else "")}
    if any(reasoning):
        message["reasoning_content"] = "".join(reasoning)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: Block, at: str) -> Document:
    if not block.name:
        raise refused(f"{at}.name", "missing; a tool_use names its tool")
    arguments: Any = block.input
    if not isinstance(arguments, dict | str | None):
        arguments = msgspec.json.encode(arguments).decode()
    function = {"name": block.name, "arguments": arguments or {}}
    return {"id": block.id or "", "type": "function", "function": function}


def _result(block: Block, at: str) -> str:
    text = block.content if isinstance(block.content, str) else _text(block.content or [], f"{at}.content")
    return f"Error: {text}" if block.is_error else text


def _text(blocks: list[Block], at: str) -> str:
    texts = [_text_of(block, f"{at}[{index}]") for index, block in enumerate(blocks)]
    return _LINES.join(text for text in texts if text is not None)


def _text_of(block: Block, at: str) -> str | None:
    """The words of a block; None for one that is left out."""
    match block.type:
        case "text" if block.text is not None:
            return block.text
        case "document":
            return _titled(block, _document(block.source, at))
        case "search_result":
            return _titled(block, _text(block.content, at) if isinstance(block.content, list) else "")
        case "tool_reference":
            return block.tool_name or ""
        case "compaction":
            return block.content if isinstance(block.content, str) else None
        case "image":
            raise refused(at, "an image; this model reads text only, so describe it in words or leave it out")
        case kind if kind in PROVIDERS_BLOCKS:
            return None
        case "text":
            raise out_of_range(f"{at}.text", "missing", "a string")
        case _:
            raise refused(at, f"a block of type {block.type[:100]!r} is not served here")


def _document(source: Source | str | None, at: str) -> str:
    if isinstance(source, Source):
        if source.type == "text" and source.data is not None:
            return source.data
        if source.type == "content" and source.content is not None:
            content = source.content
            return content if isinstance(content, str) else _text(content, f"{at}.source.content")
    kind = source.type[:100] if isinstance(source, Source) else "none"
    raise _unreadable(f"{at}.source", kind)


def _unreadable(at: str, kind: str) -> RequestError:
    return refused(at, f"of type {kind!r}; this server reads documents as text or as blocks of text only")


def _titled(block: Block, text: str) -> str:
    heads = [block.title, block.context, block.source if isinstance(block.source, str) else None]
    return _LINES.join([*filter(None, heads), text])
