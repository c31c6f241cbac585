# SPDX-License-Identifier: MIT
"""Items and tools of the Responses dialect as the plain values a chat template is given.

Reasoning, an assistant's message and calls that stand together are one assistant's message; whatever else a user
or a tool says ends it. Calls name the tool as the model knows it: a tool of a namespace is `NAMESPACE__NAME`. What
a provider's own tools left behind in a history is left out; images and files are refused with their place. No
message is made of items on both sides of a user's or a tool's, so that a history read in pieces is the history
read whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from tokenspeed.serve.body import BodyReader
from tokenspeed.serve.errors import out_of_range, refused
from tokenspeed.serve.pseudo_headers import without_pseudo_headers
from tokenspeed.serve.reading import Document, Tools
from tokenspeed.serve.responses import custom
from tokenspeed.serve.responses.schema import Item, ItemPart, Tool
from tokenspeed.serve.seal import Seal
from tokenspeed.text.chat_template import Message
from tokenspeed.text.grammar import ToolOffer

ROLES: Final = ("user", "assistant", "system", "developer")
PROVIDERS_ITEMS: Final = (
    "web_search_call", "file_search_call", "computer_call", "computer_call_output", "image_generation_call",
    "code_interpreter_call", "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output",
    "apply_patch_call", "apply_patch_call_output", "mcp_list_tools", "mcp_call", "mcp_approval_request",
    "mcp_approval_response", "tool_search_call", "tool_search_output", "additional_tools", "program",
    "program_output", "configuration_update", "compaction_trigger",
)  # fmt: skip
"""Items of tools that run on a provider's servers: of no meaning to another model, so they are left out."""
_JOINT: Final = "__"
_TEXTS: Final = ("input_text", "output_text", "text", "reasoning_text", "summary_text", "refusal")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a tool that the model calls is to the caller."""

    kind: Literal["function", "custom"]
    name: str
    namespace: str | None = None


def flat_name(name: str, namespace: str | None) -> str:
    """The name a model calls a tool by."""
    return name if not namespace else namespace.rstrip("_") + _JOINT + name


def plain_items(documents: list[Document], bodies: BodyReader, seal: Seal) -> list[Message]:
    """Messages for the template; unknown fields of items are logged once per name."""
    plain: list[Message] = []
    answer: Message | None = None  # the assistant's message that may go on
    for index, (item, document) in enumerate(
        zip(msgspec.convert(documents, list[Item], str_keys=True), documents, strict=True)
    ):
        bodies.note_unknown(document, Item, "input[].")
        at = f"input[{index}]"
        match item.type:
            case "message" if item.role == "assistant":
                answer = _going_on(answer, plain)
                answer["content"] = (answer["content"] or "") + _text(item.content, f"{at}.content")
            case "message":
                plain.append(_message(item, at))
                answer = None
            case "reasoning":
                answer = _going_on(answer, plain)
                answer["reasoning_content"] = answer.get("reasoning_content", "") + _reasoning(item, at, seal)
            case "function_call" | "custom_tool_call":
                answer = _going_on(answer, plain)
                answer.setdefault("tool_calls", []).append(_call(item, at))
            case "function_call_output" | "custom_tool_call_output":
                content = _text(item.output, f"{at}.output")
                plain.append({"role": "tool", "tool_call_id": item.call_id or "", "content": content})
                answer = None
            case "compaction" if item.encrypted_content and (text := seal.open(item.encrypted_content)):
                plain.append({"role": "user", "content": text})
                answer = None
            case kind if kind in PROVIDERS_ITEMS or kind == "compaction":
                pass
            case _:
                raise refused(f"{at}.type", f"an item of type {item.type[:100]!r} is not served here")
    return [_settled(message) for message in plain]


def plain_tools(documents: list[Document]) -> Tools | None:
    """Tools for the template and what they are to the caller, or None if there are none of the client's own."""
    plain: list[Document] = []
    origins: dict[str, Any] = {}
    offers: list[ToolOffer] = []
    for index, tool in enumerate(msgspec.convert(documents, list[Tool], str_keys=True)):
        inner = tool.tools or [] if tool.type == "namespace" else [tool]
        namespace = tool.name if tool.type == "namespace" else None
        for each in inner:
            if each.type not in ("function", "custom"):
                continue
            if not each.name:
                raise refused(f"tools[{index}].name", "missing; a tool of the client's needs one")
            name = flat_name(each.name, namespace)
            kind = "function" if each.type == "function" else "custom"
            origins[name] = Origin(kind, each.name, namespace)
            function = _function(each, name, tool.description)
            plain.append({"type": "function", "function": function})
            at = f"tools[{index}].parameters"
            offers.append(ToolOffer(name, function["parameters"], each.strict is True, at))
    return Tools(plain, origins, tuple(offers)) if plain else None


def _function(tool: Tool, name: str, description: str | None) -> Document:
    function: Document = {"name": name, "description": tool.description or description or ""}
    if tool.type == "function":
        function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
        return function
    told = ""
    if tool.format is not None and tool.format.definition:
        told = f"The whole input of the tool, which follows this {tool.format.syntax or ''} grammar:\n"
        told += tool.format.definition
    return function | {"parameters": custom.parameters(told)}


def _going_on(answer: Message | None, plain: list[Message]) -> Message:
    if answer is None:
        answer = {"role": "assistant", "content": None}
        plain.append(answer)
    return answer


def _settled(message: Message) -> Message:
    """Content is null only beside calls, and reasoning is none rather than empty."""
    if message["role"] == "assistant":
        if not message["content"]:
            message["content"] = None if "tool_calls" in message else ""
        if not message.get("reasoning_content", "?"):
            del message["reasoning_content"]
    return message


def _message(item: Item, at: str) -> Message:
    if item.role not in ROLES:
        raise out_of_range(f"{at}.role", repr((item.role or "")[:100]), f"one of {', '.join(ROLES)}")
    text = _text(item.content, f"{at}.content")
    if item.role == "user":
        return {"role": "user", "content": text}
    return {"role": "system", "content": without_pseudo_headers(text)}


def _reasoning(item: Item, at: str, seal: Seal) -> str:
    """What this server sealed comes first: clients need not send the rest back."""
    opened = seal.open(item.encrypted_content or "")
    if opened is not None:
        return opened
    return _text(item.content or item.summary, f"{at}.content")


def _call(item: Item, at: str) -> Document:
    if not item.name:
        raise refused(f"{at}.name", "missing; a call names its tool")
    given = custom.arguments(item.input or "") if item.type == "custom_tool_call" else item.arguments or {}
    function = {"name": flat_name(item.name, item.namespace), "arguments": given}
    return {"id": item.call_id or item.id or "", "type": "function", "function": function}


def _text(content: str | list[ItemPart] | None, at: str) -> str:
    if not isinstance(content, list):
        return content or ""
    texts: list[str] = []
    for index, part in enumerate(content):
        text = part.text if part.text is not None else part.refusal
        if part.type not in _TEXTS or text is None:
            raise refused(
                f"{at}[{index}]",
                f"a part of type {part.type[:100]!r}; this model reads text only, so describe it in words or "
                "leave it out",
            )
        texts.append(text)
    return "\n".join(texts)
