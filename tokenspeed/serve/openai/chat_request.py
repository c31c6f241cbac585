# SPDX-License-Identifier: MIT
"""A chat body to a prompt, reading only what is new of it where the turn ledger knows the rest.

In: the bytes of a body. Out: an `Asking`, then its prompt. Messages that the ledger knows are neither decoded
nor checked again: they are the same bytes. Errors are always those of a whole reading: if what is new shows
any, everything is read, and that reading raises.

Cost at 122k tokens, 500 kB of body: 0.2 ms to find the fields, 0.05 ms to copy the messages and compare them;
reading everything costs about 2 ms before any text work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import msgspec
import numpy as np
from starlette.requests import Request

from tokenspeed.base.errors import RequestError
from tokenspeed.serve.body import BodyReader
from tokenspeed.serve.errors import out_of_range
from tokenspeed.serve.openai.messages import plain_messages, plain_tools
from tokenspeed.serve.openai.sampling import origin_of
from tokenspeed.serve.openai.schema import ChatBody, ChatMessage, Tool
from tokenspeed.serve.service import Service
from tokenspeed.text.chat_template import Message
from tokenspeed.text.ledger import Asked, Found, Turn

_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OBJECTS: Final = msgspec.json.Decoder(list[dict[str, Any]])
_LONG: Final = frozenset({"messages", "tools"})
_TOOLS_KEPT_BYTES: Final = 256 << 10  # times 32, the memory of what is kept
_BLANK: Final = b" \t\r\n"
_BETWEEN: Final = _BLANK + b","
_CACHE_NAME: Final = b'"cache_control"'
_CACHE_MARK: Final = re.compile(rb',\s*"cache_control"\s*:\s*\{[^{}\\]*\}')
_OBJECT_ARGUMENTS: Final = re.compile(rb'"arguments"\s*:\s*\{')
"""Inside those it would be a word of the model's."""


@dataclass(frozen=True, slots=True)
class Asking:
    """One chat request. Where `new` is set, `body` holds no messages: all but these are known."""

    data: bytes
    body: ChatBody
    raw: dict[str, Any]
    asked: Asked | None = None  # None for what the ledger does not hold
    found: Found | None = None
    new: list[Message] | None = None

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """Tools that the model may call, as they were sent; checked with the prompt."""
        return self.raw["tools"] if self.body.tools and self.body.tool_choice != "none" else None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is to continue."""

    ids: np.ndarray | Sequence[int]
    in_reasoning: bool
    turn: Turn | None


def read(request: Request, service: Service, data: bytes) -> Asking:
    """The body, and as much of its messages as is needed; `RequestError` for what is no such body."""
    part = _read_part(request, service, data)
    if part is not None and part.new is not None:
        return part
    body, raw = service.bodies.parse(data, ChatBody)
    return Asking(data, body, raw) if part is None else Asking(data, body, raw, part.asked, part.found)


def variables_of(body: ChatBody) -> dict[str, Any]:
    """What the template is told beside messages and tools."""
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    return variables


async def prompt_of(asking: Asking, service: Service) -> Prompt:
    """Render and encode what needs it; `RequestError` where the model cannot express the messages."""
    turns, asked, found = service.turns, asking.asked, asking.found
    if asked is not None and found is not None and asking.new is not None:
        turn = await turns.append(found, asked, asking.new)
        if turn is not None:
            turns.check(turn, lambda: _full_ids(asking.data, service))
            return Prompt(turn.prompt_ids, turn.opens_reasoning, turn)
    whole = (
        asking if asking.new is None else Asking(asking.data, *service.bodies.parse(asking.data, ChatBody))
    )
    messages, tools = _plain(whole, service.bodies)
    variables = variables_of(asking.body)
    if asked is None:
        add = asking.body.add_generation_prompt
        prompt = await service.run_text(
            lambda: service.text.prompt_of_chat(
                messages, tools=tools, variables=variables, add_generation_prompt=add
            )
        )
        return Prompt(prompt.ids, prompt.in_reasoning, None)
    turn = await turns.render(found, asked, messages, tools, variables)
    turns.check(turn, lambda: _full_ids(asking.data, service))
    return Prompt(turn.prompt_ids, turn.opens_reasoning, turn)


def _plain(whole: Asking, bodies: BodyReader) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """All messages and tools, checked."""
    if not whole.body.messages:
        raise out_of_range("messages", "empty", "a list of at least one message")
    tools = plain_tools(whole.body.tools, whole.raw) if whole.body.tool_choice != "none" else None
    return plain_messages(whole.body.messages, whole.raw, bodies), tools


def _full_ids(data: bytes, service: Service) -> list[int]:
    """The ids of a body by the slow true path."""
    body, raw = service.bodies.parse(data, ChatBody)
    messages, tools = _plain(Asking(data, body, raw), service.bodies)
    return service.text.prompt_of_chat(messages, tools=tools, variables=variables_of(body)).ids


def _read_part(request: Request, service: Service, data: bytes) -> Asking | None:
    """The body without the messages that are known; None if it must be read whole and is not kept."""
    try:
        fields = {name: field for name, field in _FIELDS.decode(data).items() if not _is_null(field)}
        begin, end = _place(data, fields["messages"])
        tools = bytes(fields.get("tools", b""))
        raw = {name: msgspec.json.decode(field) for name, field in fields.items() if name not in _LONG}
        body = msgspec.convert(raw | {"messages": []}, ChatBody, str_keys=True)
        if tools:
            read_tools = _tools if len(tools) <= _TOOLS_KEPT_BYTES else _tools.__wrapped__
            raw["tools"], body.tools = read_tools(tools)
        service.bodies.note_unknown(fields, ChatBody)
        origin = origin_of(body, request)
    except (msgspec.MsgspecError, RequestError, UnicodeDecodeError, RecursionError, KeyError):
        return None
    if not 0 <= begin < end or not data.startswith(b"[", begin) or not body.add_generation_prompt:
        return None
    asked = Asked(
        data=data,
        begin=begin,
        end=end,
        tools=tools if body.tools and body.tool_choice != "none" else b"",
        variables=msgspec.json.encode(variables_of(body), order="sorted"),
        salt=origin.salt,
        session=origin.session,
    )
    found = service.turns.find(asked)
    if (found is None or found.mark is None) and (unmarked := _unmarked(asked)):
        asked, found = unmarked, service.turns.find(unmarked)
    if found is None or found.mark is None:
        return Asking(data, body, raw, asked, found)
    new = _new_messages(asked.data[asked.begin + found.mark.span_end : asked.end], service.bodies)
    return Asking(data, body, raw, asked, found, new)


def _place(data: bytes, messages: msgspec.Raw) -> tuple[int, int]:
    """Where in a body the array of messages begins, and where its last element ends; no copy is made."""
    view = memoryview(messages)
    begin = _address(view) - _address(data)
    return begin, _last(data, begin + len(view))


def _last(data: bytes, end: int) -> int:
    """The end of an array's last element, given its own."""
    end -= 1  # the bracket
    while data[end - 1] in _BLANK:
        end -= 1
    return end


def _unmarked(asked: Asked) -> Asked | None:
    """The same messages without cache marks, if they hold any.

    Some clients move marks from message to message each turn. No template is told of them, so that messages
    which differ in them are the same.
    """
    data, begin, end = asked.data, asked.begin, asked.end
    if data.find(_CACHE_NAME, begin, end) < 0 or _OBJECT_ARGUMENTS.search(data, begin, end):
        return None
    data = _CACHE_MARK.sub(b"", data[begin:end])
    return replace(asked, data=data, begin=0, end=len(data))


def _address(data: bytes | memoryview) -> int:
    """Where bytes are in memory: what a decoder returns raw is a part of what it was given."""
    return np.frombuffer(data, np.uint8).__array_interface__["data"][0]


def _is_null(field: msgspec.Raw) -> bool:
    return bytes(memoryview(field)[:4]) == b"null"


def _new_messages(rest: bytes, bodies: BodyReader) -> list[Message] | None:
    """The messages after those known; None if something is wrong with them."""
    try:
        documents = _OBJECTS.decode(b"[" + rest.lstrip(_BETWEEN) + b"]")
        messages = msgspec.convert(documents, list[ChatMessage], str_keys=True)
        return plain_messages(messages, {"messages": documents}, bodies)
    except (msgspec.MsgspecError, RequestError, UnicodeDecodeError, RecursionError):
        return None


@lru_cache(maxsize=32)
def _tools(data: bytes) -> tuple[list[dict[str, Any]], list[Tool]]:
    """Tools from their JSON: a session sends the same every turn."""
    documents = _OBJECTS.decode(data)
    return documents, msgspec.convert(documents, list[Tool], str_keys=True)
