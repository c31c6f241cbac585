# SPDX-License-Identifier: MIT
"""Spells one answer of the Responses dialect: items, whole or as events.

In: updates of a generation. Out: a `response` document, or events with a rising `sequence_number` of which the last
is always `response.completed`, `response.incomplete` or `response.failed` (rule R2): clients fail without. Documents
and streams are made of the same items.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tokenspeed.serve.answer import Collected, Usage
from tokenspeed.serve.errors import ApiError
from tokenspeed.serve.generation import Update
from tokenspeed.serve.parts import Change, Closed, Grown, Opened, Part, Parts, parts_of
from tokenspeed.serve.responses.custom import InputReader
from tokenspeed.serve.responses.items import Origin
from tokenspeed.serve.seal import Seal
from tokenspeed.serve.sse import encode, named_frame
from tokenspeed.text.events import CallStatus
from tokenspeed.text.output import OutputFinish

Document = dict[str, Any]
_PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}
_CODES = {"engine_full": "rate_limit_exceeded", "context_length_exceeded": "context_length_exceeded"}


@dataclass(slots=True)
class _Item:
    """A part as an item, and what its events are cut out of."""

    part: Part
    id: str
    origin: Origin | None  # of a call
    delta_head: bytes
    input: InputReader = field(default_factory=InputReader)
    input_text: list[str] = field(default_factory=list[str])  # of a custom tool, as far as it is sure


class ResponsesWriter:
    """Spells one answer. `head` are the fields that the request decides, `keep` is given the finished document."""

    def __init__(
        self,
        head: Document,
        origins: dict[str, Origin],
        prompt_tokens: int,
        seal: Seal | None,
        keep: Callable[[str, Document], None],
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.answer_id = f"resp_{secrets.token_hex(16)}"
        self.headers = {"x-request-id": self.answer_id}
        self._head = {"id": self.answer_id, "object": "response", "created_at": int(time.time())} | head
        self._origins = origins
        self._seal = seal  # None where no encrypted reasoning is wanted
        self._keep = keep
        self._parts = Parts()
        self._items: dict[Part, _Item] = {}
        self._number = 0
        self._finish: OutputFinish | None = None

    def opening(self) -> bytes:
        document = self._document("in_progress", [])
        return self._frame("response.created", response=document) + self._frame(
            "response.in_progress", response=document
        )

    def started(self, cached_tokens: int) -> bytes:
        return b""

    def update(self, update: Update) -> bytes:
        self._finish = update.finish
        grown = self._parts.grown(update.events)
        if grown is not None:
            return self._change(grown)
        return b"".join(map(self._change, self._parts.changes(update.events)))

    def heartbeat(self) -> bytes:
        done = [self._item(item) for item in self._items.values()]
        return self._frame("response.in_progress", response=self._document("in_progress", done))

    def closing(self, usage: Usage) -> bytes:
        last = b"".join(map(self._change, self._parts.end(_status(self._finish))))
        items = [self._item(item) for item in self._items.values()]
        document = self._finished(items, self._finish, usage)
        return last + self._frame(f"response.{document['status']}", response=document)

    def failure(self, error: BaseException) -> bytes:
        said = ApiError.of(error)
        last = b"".join(map(self._change, self._parts.end("truncated")))
        items = [self._item(item) for item in self._items.values()]
        code = _CODES.get(said.code, "server_error" if said.status >= 500 else said.code)
        document = self._document("failed", items, error={"code": code, "message": said.message})
        return last + self._frame("response.failed", response=document)

    def whole(self, choices: list[Collected], usage: Usage) -> Document:
        (choice,) = choices
        items = [self._item(self._new_item(part)) for part in parts_of(choice.events, _status(choice.finish))]
        return self._finished(items, choice.finish, usage)

    def _finished(self, items: list[Document], finish: OutputFinish | None, usage: Usage) -> Document:
        if finish == "length":
            why = {"reason": "max_output_tokens"}
            document = self._document("incomplete", items, incomplete_details=why, usage=_usage(usage))
        else:
            document = self._document("completed", items, usage=_usage(usage))
        self._keep(self.answer_id, document)
        return document

    def _document(self, status: str, items: list[Document], **more: Any) -> Document:
        return self._head | {"status": status, "output": items} | more

    def _frame(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return named_frame({"type": kind, "sequence_number": self._number - 1} | fields)

    def _change(self, change: Change) -> bytes:
        match change:
            case Opened(part):
                item = self._items[part] = self._new_item(part)
                return self._opened(item)
            case Grown(part, text):
                item = self._items[part]
                if _is_custom(item):
                    text = item.input.feed(text)
                    item.input_text.append(text)
                return self._delta(item, text) if text else b""
            case Closed(part):
                return self._closed(self._items[part])

    def _new_item(self, part: Part) -> _Item:
        origin = self._origins.get(part.name, Origin("function", part.name)) if part.kind == "call" else None
        prefix = "ctc" if origin and origin.kind == "custom" else _PREFIXES[part.kind]
        item_id = f"{prefix}_{secrets.token_hex(12)}"
        kind, place = _DELTAS[_kind(part, origin)]
        head = b'event: %b\ndata: {"type":"%b","item_id":"%b","output_index":%d,%b"delta":' % (
            kind, kind, item_id.encode(), part.index, place
        )  # fmt: skip
        return _Item(part, item_id, origin, head)

    def _opened(self, item: _Item) -> bytes:
        added = self._frame(
            "response.output_item.added", output_index=item.part.index, item=self._item(item, is_new=True)
        )
        if item.part.kind == "call":
            return added
        return added + self._frame(
            "response.content_part.added", **_place(item), part=_content(item.part, "")
        )

    def _delta(self, item: _Item, text: str) -> bytes:
        self._number += 1
        return b'%b%b,"sequence_number":%d}\n\n' % (item.delta_head, encode(text), self._number - 1)

    def _closed(self, item: _Item) -> bytes:
        part = item.part
        last = b""
        if _is_custom(item):
            rest = item.input.end()
            item.input_text.append(rest)
            last = self._delta(item, rest) if rest else b""
            place = {"item_id": item.id, "output_index": part.index}
            last += self._frame(
                "response.custom_tool_call_input.done", **place, input="".join(item.input_text)
            )
        elif part.kind == "call":
            place = {"item_id": item.id, "output_index": part.index}
            done = {"name": part.name, "arguments": part.text}
            last = self._frame("response.function_call_arguments.done", **place, **done)
        else:
            text = part.text
            done = {"text": text} | ({"logprobs": []} if part.kind == "text" else {})
            kind = "response.output_text.done" if part.kind == "text" else "response.reasoning_text.done"
            last = self._frame(kind, **_place(item), **done)
            last += self._frame("response.content_part.done", **_place(item), part=_content(part, text))
        return last + self._frame("response.output_item.done", output_index=part.index, item=self._item(item))

    def _item(self, item: _Item, *, is_new: bool = False) -> Document:
        """The item as far as it is there."""
        part, origin = item.part, item.origin
        is_open = part.status is None
        status = "in_progress" if is_open else "completed" if part.status == "complete" else "incomplete"
        if origin is not None:
            named = {"call_id": part.id, "name": origin.name}
            named |= {} if origin.namespace is None else {"namespace": origin.namespace}
            if origin.kind == "custom":
                return {"id": item.id, "type": "custom_tool_call", "status": status} | named | {
                    "input": "".join(item.input_text) if item.input_text or is_open else _input(part.text)
                }  # fmt: skip
            called = {"id": item.id, "type": "function_call", "status": status}
            return called | named | {"arguments": part.text}
        contents = [] if is_new else [_content(part, part.text)]
        if part.kind == "text":
            message = {"id": item.id, "type": "message", "status": status, "role": "assistant"}
            return message | {"content": contents}
        reasoning: Document = {"id": item.id, "type": "reasoning", "summary": [], "content": contents}
        if self._seal is not None:
            reasoning["encrypted_content"] = None if is_open else self._seal.close(part.text)
        return reasoning


_DELTAS = {
    "reasoning": (b"response.reasoning_text.delta", b'"content_index":0,'),
    "text": (b"response.output_text.delta", b'"content_index":0,"logprobs":[],'),
    "function": (b"response.function_call_arguments.delta", b""),
    "custom": (b"response.custom_tool_call_input.delta", b""),
}


def _status(finish: OutputFinish | None) -> CallStatus:
    """What becomes of the last part."""
    return "truncated" if finish == "length" else "complete"


def _kind(part: Part, origin: Origin | None) -> str:
    return part.kind if origin is None else origin.kind


def _is_custom(item: _Item) -> bool:
    return item.origin is not None and item.origin.kind == "custom"


def _input(arguments: str) -> str:
    """The text of a custom tool's input, from the whole of its arguments."""
    reader = InputReader()
    return reader.feed(arguments) + reader.end()


def _place(item: _Item) -> Document:
    return {"item_id": item.id, "output_index": item.part.index, "content_index": 0}


def _content(part: Part, text: str) -> Document:
    if part.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Usage) -> Document:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
