# SPDX-License-Identifier: MIT
"""Messages and tools of the OpenAI dialect as the plain values a chat template is given.

Only what templates know passes: role, content, name, reasoning_content, tool_calls, tool_call_id. `developer`
is `system`, which is what models were taught. Arguments stay as they came; the template layer decides how
they are rendered. Tools pass as they were sent, so that the prompt does not depend on this file.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tokenspeed.serve.body import BodyReader
from tokenspeed.serve.errors import out_of_range, refused
from tokenspeed.serve.openai.schema import ChatMessage, ContentPart, Tool, ToolCall
from tokenspeed.serve.pseudo_headers import without_pseudo_headers
from tokenspeed.text.chat_template import Message

ROLES: Final = ("system", "developer", "user", "assistant", "tool")


def plain_messages(documents: list[dict[str, Any]], bodies: BodyReader) -> list[Message]:
    """Messages for the template; unknown fields of theirs are logged once per name."""
    messages = msgspec.convert(documents, list[ChatMessage], str_keys=True)
    for document in documents:
        bodies.note_unknown(document, ChatMessage, "messages[].")
    return [_plain(message, f"messages[{index}]") for index, message in enumerate(messages)]


def plain_tools(documents: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Tools for the template, or None if there are none."""
    for index, tool in enumerate(msgspec.convert(documents, list[Tool], str_keys=True)):
        if tool.type != "function":
            raise refused(f"tools[{index}].type", f"{tool.type!r} is not served; use 'function'")
        if tool.function is None:
            raise refused(f"tools[{index}].function", "missing; give an object with name and parameters")
    return documents or None


def _plain(message: ChatMessage, at: str) -> Message:
    if message.role == "function" or message.function_call is not None:
        raise refused(f"{at}.function_call", "superseded by the API itself; use tool_calls and role 'tool'")
    if message.role not in ROLES:
        raise out_of_range(f"{at}.role", repr(message.role[:100]), f"one of {', '.join(ROLES)}")
    plain: Message = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _content(message.content, at),
    }
    if plain["role"] == "system" and isinstance(plain["content"], str):
        plain["content"] = without_pseudo_headers(plain["content"])
    if message.role == "tool" and plain["content"] is None:
        plain["content"] = ""
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    reasoning = message.reasoning_content if message.reasoning_content is not None else message.reasoning
    if reasoning is not None and message.role == "assistant":
        plain["reasoning_content"] = reasoning
    if message.tool_calls:
        plain["tool_calls"] = [_plain_call(call) for call in message.tool_calls]
    return plain


def _content(content: str | list[ContentPart] | None, at: str) -> str | list[dict[str, str]] | None:
    if not isinstance(content, list):
        return content
    parts: list[dict[str, str]] = []
    for index, part in enumerate(content):
        text = part.text if part.text is not None else part.refusal
        if part.type not in ("text", "refusal", "input_text", "output_text") or text is None:
            raise refused(
                f"{at}.content[{index}]", f"a part of type {part.type!r}; this model reads text only"
            )
        parts.append({"type": "text", "text": text})
    return parts


def _plain_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id or "", "type": "function", "function": function}
