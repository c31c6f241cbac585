# SPDX-License-Identifier: MIT
"""A body of any chat dialect to a prompt, reading only what is new of it where the turn ledger knows the rest.

In: the bytes of a body, and the dialect's `Spelling`. Out: an `Asking`, then its prompt. Messages that the
ledger knows are neither decoded nor checked again: they are the same bytes. Errors are always those of a whole
reading: if what is new shows any, everything is read, and that reading raises.

Some clients move cache marks (`cache_control`) from message to message each turn. No template is told of them, so
messages which differ in them are the same: they are cut out before the ledger compares. What is cut out is a
mark and no word of a model's: of every turn that held one, the decoded messages hold as many marks.

Cost at 122k tokens, 500 kB of body: 0.2 ms to find the fields, 0.05 ms to copy the messages and compare them;
reading everything costs about 2 ms before any text work.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec
import numpy as np
from starlette.requests import Request

from tokenspeed.base.errors import RequestError
from tokenspeed.serve.generation import Origin
from tokenspeed.serve.service import Service
from tokenspeed.text.chat_template import Message
from tokenspeed.text.grammar import ToolOffer
from tokenspeed.text.ledger import Asked, Found, Turn
from tokenspeed.text.plane import Ending

_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OBJECTS: Final = msgspec.json.Decoder(list[dict[str, Any]])
_TOOLS_KEPT_BYTES: Final = 256 << 10  # times 32, the memory of what is kept
_BLANK: Final = b" \t\r\n"
_BETWEEN: Final = _BLANK + b","
_MARK_NAME: Final = b'"cache_control"'
_TTL: Final = re.compile(rb'"ttl"\s*:\s*"(\w+)"')
_RETAIN_US: Final = {"5m": 300_000_000, "1h": 3_600_000_000}
_MARK: Final = re.compile(rb'"cache_control"\s*:\s*\{[^{}\\]*\}')

Document = dict[str, Any]
Fields = dict[str, msgspec.Raw]
B = TypeVar("B", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Tools:
    """Tools on offer: as a template is told of them, and what calls of them are to the caller."""

    plain: list[dict[str, Any]]
    origins: dict[str, Any] = field(default_factory=dict[str, Any])
    """By the name that the model knows: whatever the dialect needs to name it back."""
    offers: tuple[ToolOffer, ...] = ()
    """The same for constraints of their calls."""


class Spelling(Protocol[B]):
    """How a dialect spells a chat request."""

    name: str
    body: type[B]
    history: str
    """The field that grows from turn to turn; it and `tools` are not decoded with the others."""

    def place(self, data: bytes, fields: Fields, service: Service) -> tuple[bytes, int, int]:
        """Bytes, and where in them the history's array begins and its last element ends."""
        ...

    def documents(self, body: B, raw: Document, service: Service) -> list[Document]:
        """The history of a body that was read whole."""
        ...

    def messages(self, documents: list[Document], service: Service) -> list[Message]:
        """Some neighbouring elements of the history; `RequestError` for what the model cannot be told."""
        ...

    def leading(self, body: B) -> list[Message]:
        """What stands before the history."""
        ...

    def tools(self, documents: list[Document]) -> Tools | None:
        """`RequestError` for tools that are not served; None if none is left."""
        ...

    def offers_tools(self, body: B) -> bool:
        """Whether the model may call what tools there are."""
        ...

    def variables(self, body: B) -> dict[str, Any]:
        """What the template is told beside messages and tools."""
        ...

    def origin(self, body: B, request: Request) -> Origin:
        """Where the request comes from."""
        ...

    def ending(self, body: B, last_role: str) -> Ending:
        """Where the prompt ends, given whose the last message is; the ledger holds those that end in an answer."""
        ...


@dataclass(frozen=True, slots=True)
class Asking(Generic[B]):
    """One chat request. Where `new` is set, `body` holds no messages: all but these are known."""

    data: bytes
    spelling: Spelling[B]
    body: B
    raw: Document
    tools: Tools | None
    origin: Origin
    asked: Asked | None = None  # None for what the ledger does not hold
    found: Found | None = None
    new: list[Message] | None = None
    marks: int = 0  # cut out of what was asked

    @property
    def offers(self) -> tuple[ToolOffer, ...]:
        return () if self.tools is None else self.tools.offers


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is to continue."""

    ids: np.ndarray | Sequence[int]
    in_reasoning: bool
    turn: Turn | None


@dataclass(frozen=True, slots=True)
class _Cut:
    """What is left of bytes without their cache marks."""

    data: bytes
    places: list[tuple[int, int]]  # of each mark: where it stood in `data`, and how long it was
    retain_us: int  # the longest that a mark asks for

    def original(self, data: memoryview, begin: int, end: int) -> tuple[bytes, int]:
        """The bytes from which `data[begin:end]` is left, and the number of marks in them."""
        before = sum(length for at, length in self.places if at <= begin)
        within = [length for at, length in self.places if begin < at <= end]
        return bytes(data[begin + before : end + before + sum(within)]), len(within)


def read(request: Request, service: Service, data: bytes, spelling: Spelling[B]) -> Asking[B]:
    """The body, and as much of its messages as is needed; `RequestError` for what is no such body."""
    part = _read_part(request, service, data, spelling)
    if part is not None and part.new is not None:
        return part
    body, raw = service.bodies.parse(data, spelling.body)
    if part is None:
        origin = spelling.origin(body, request)
        return Asking(data, spelling, body, raw, _tools_of(spelling, body, raw), origin)
    return replace(part, body=body, raw=raw)


async def prompt_of(asking: Asking[B], service: Service) -> Prompt:
    """Render and encode what needs it; `RequestError` where the model cannot express the messages."""
    turns, asked, found, data, spelling = (
        service.turns, asking.asked, asking.found, asking.data, asking.spelling,
    )  # fmt: skip
    if asked is not None and found is not None and asking.new is not None:
        turn = await turns.append(found, asked, asking.new)
        if turn is not None:
            turns.check(turn, lambda: full_ids(data, spelling, service))
            return Prompt(turn.prompt_ids, turn.opens_reasoning, turn)
        body, raw = service.bodies.parse(data, spelling.body)
    else:
        body, raw = asking.body, asking.raw
    documents = spelling.documents(body, raw, service)
    messages = [*spelling.leading(body), *spelling.messages(documents, service)]
    tools = None if asking.tools is None else asking.tools.plain
    variables = spelling.variables(body)
    ending = spelling.ending(body, messages[-1]["role"])
    are_marks = not asking.marks or marks_in(documents) == asking.marks
    if asked is None or ending != "answer" or not are_marks:
        prompt = await service.run_text(
            lambda: service.text.prompt_of_chat(messages, tools=tools, variables=variables, ending=ending)
        )
        return Prompt(prompt.ids, prompt.in_reasoning, None)
    turn = await turns.render(found, asked, messages, tools, variables)
    turns.check(turn, lambda: full_ids(data, spelling, service))
    return Prompt(turn.prompt_ids, turn.opens_reasoning, turn)


def array_place(data: bytes, array: msgspec.Raw) -> tuple[bytes, int, int]:
    """`Spelling.place` of an array that is a part of the body; no copy is made."""
    view = memoryview(array)
    begin = _address(view) - _address(data)
    return data, begin, last_end(data, begin + len(view))


def last_end(data: bytes, end: int) -> int:
    """The end of an array's last element, given its own."""
    end -= 1  # the bracket
    while data[end - 1] in _BLANK:
        end -= 1
    return end


def retain_of(ttl: str | None) -> int:
    """How long a cache mark asks that what is before it be kept, in microseconds."""
    return _RETAIN_US.get(ttl or "5m", 0)


def marks_in(documents: list[Document]) -> int:
    """The cache marks of messages, on themselves or on parts of their contents at any depth."""
    marks = 0
    for document in documents:
        marks += "cache_control" in document
        inner = document.get("content")
        if isinstance(inner, list):
            marks += marks_in([part for part in inner if isinstance(part, dict)])
    return marks


def _read_part(request: Request, service: Service, data: bytes, spelling: Spelling[B]) -> Asking[B] | None:
    """The body without the messages that are known; None if it must be read whole and is not kept."""
    apart = (spelling.history, "tools")
    try:
        fields = {name: field for name, field in _FIELDS.decode(data).items() if not _is_null(field)}
        where, begin, end = spelling.place(data, fields, service)
        raw = {name: msgspec.json.decode(field) for name, field in fields.items() if name not in apart}
        body = msgspec.convert(raw | {spelling.history: []}, spelling.body, str_keys=True)
        service.bodies.note_unknown(fields, spelling.body)
        given = bytes(fields.get("tools", b"")) if spelling.offers_tools(body) else b""
        read_tools = _tools if len(given) <= _TOOLS_KEPT_BYTES else _tools.__wrapped__
        tools = read_tools(spelling, given) if given else None
        origin = spelling.origin(body, request)
        leading = msgspec.json.encode(spelling.leading(body))
        variables = msgspec.json.encode(spelling.variables(body), order="sorted")
    except (msgspec.MsgspecError, RequestError, UnicodeDecodeError, RecursionError, KeyError):
        return None
    if not 0 <= begin < end or not where.startswith(b"[", begin) or spelling.ending(body, "user") != "answer":
        return None
    asked = Asked(
        data=where,
        begin=begin,
        end=end,
        tools=given if tools else b"",
        variables=variables,
        context=spelling.name.encode() + leading,
        salt=origin.salt,
        session=origin.session.id,
    )
    found, cut, marks = service.turns.find(asked), None, 0
    # Looking through all bytes for marks takes 0.1 ms, so only through what is new: what is known has lost its own.
    known_end = begin if found is None or found.mark is None else begin + found.mark.span_end
    if (cut := _cut(where, begin, known_end, end)) is not None:
        marks = len(cut.places)
        session = replace(origin.session, retain_us=max(origin.session.retain_us, cut.retain_us))
        origin = replace(origin, session=session)
        asked = replace(asked, data=cut.data, begin=0, end=len(cut.data))
        if found is None or not found.continues:  # more may be known of what is left
            found = service.turns.find(asked)
    if found is None or found.mark is None:
        return Asking(data, spelling, body, raw, tools, origin, asked, found, marks=marks)
    new = _new_messages(found, asked, memoryview(where)[begin:end], cut, spelling, service)
    return Asking(data, spelling, body, raw, tools, origin, asked, found, new, marks)


def _tools_of(spelling: Spelling[B], body: B, raw: Document) -> Tools | None:
    return spelling.tools(raw["tools"]) if raw.get("tools") and spelling.offers_tools(body) else None


def full_ids(data: bytes, spelling: Spelling[B], service: Service) -> list[int]:
    """The ids of a body by the slow true path."""
    body, raw = service.bodies.parse(data, spelling.body)
    tools = _tools_of(spelling, body, raw)
    messages = spelling.messages(spelling.documents(body, raw, service), service)
    return service.text.prompt_of_chat(
        [*spelling.leading(body), *messages],
        tools=None if tools is None else tools.plain,
        variables=spelling.variables(body),
    ).ids


def _cut(data: bytes, begin: int, known_end: int, end: int) -> _Cut | None:
    """The same messages without the cache marks of those after `known_end`, if they hold any."""
    pieces: list[bytes] = []
    places: list[tuple[int, int]] = []
    kept, length, retain_us = begin, 0, 0
    at = data.find(_MARK_NAME, known_end, end)
    while at >= 0:
        found = _MARK.match(data, at, end)
        start = at
        while data[start - 1] in _BLANK:
            start -= 1
        if found is None or data[start - 1 : start] != b",":
            return None  # not as those clients write it
        pieces.append(data[kept : start - 1])
        length += len(pieces[-1])
        kept = found.end()
        ttl = _TTL.search(found[0])
        retain_us = max(retain_us, retain_of(None if ttl is None else ttl[1].decode()))
        places.append((length, kept - start + 1))
        at = data.find(_MARK_NAME, kept, end)
    if not places:
        return None
    return _Cut(b"".join([*pieces, data[kept:end]]), places, retain_us)


def _address(data: bytes | memoryview) -> int:
    """Where bytes are in memory: what a decoder returns raw is a part of what it was given."""
    return np.frombuffer(data, np.uint8).__array_interface__["data"][0]


def _is_null(field: msgspec.Raw) -> bool:
    return bytes(memoryview(field)[:4]) == b"null"


def _new_messages(
    found: Found, asked: Asked, span: memoryview, cut: _Cut | None, spelling: Spelling[Any], service: Service
) -> list[Message] | None:
    """The messages after those known; None if something is wrong with them, or a cut with what is known."""
    assert found.mark is not None
    begin, end = found.mark.span_end, asked.end - asked.begin
    marks = 0
    if cut is None:
        rest = asked.data[asked.begin + begin : asked.end]
    else:
        if not _cuts_are_marks(found, span, cut):
            return None
        rest, marks = cut.original(span, begin, end)
    try:
        documents = _OBJECTS.decode(b"[" + rest.lstrip(_BETWEEN) + b"]")
        return None if cut and marks_in(documents) != marks else spelling.messages(documents, service)
    except (msgspec.MsgspecError, RequestError, UnicodeDecodeError, RecursionError):
        return None


def _cuts_are_marks(found: Found, span: memoryview, cut: _Cut) -> bool:
    """Whether what was cut out of known messages were marks: the turns that held some are decoded again."""
    assert found.mark is not None
    ends = [mark.span_end for mark in found.record.marks if mark.span_end <= found.mark.span_end]
    turns = {bisect_right(ends, at - 1) for at, _ in cut.places}
    for turn in turns - {len(ends)}:
        begin = ends[turn - 1] if turn else 0
        known, marks = cut.original(span, begin, ends[turn])
        try:
            documents = _OBJECTS.decode(b"[" + known.lstrip(_BETWEEN + b"[") + b"]")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        if marks_in(documents) != marks:
            return False
    return True


@lru_cache(maxsize=32)
def _tools(spelling: Spelling[Any], data: bytes) -> Tools | None:
    """Tools from their JSON: a session sends the same every turn."""
    return spelling.tools(_OBJECTS.decode(data))
