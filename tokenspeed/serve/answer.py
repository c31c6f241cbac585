# SPDX-License-Identifier: MIT
"""From a generation to an HTTP answer, through the writer of a dialect.

A `Writer` turns updates into events (streamed) or collected choices into one document (whole); both see the
same events of the same path, so a streamed answer joined is the whole one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.base.sampling import TokenLogprob
from tokenspeed.serve.generation import Generation, Update
from tokenspeed.serve.sse import EventStream, abort_on_disconnect
from tokenspeed.text.events import Event, Reasoning
from tokenspeed.text.output import OutputFinish

HEARTBEAT_S: Final = 10.0


@dataclass(slots=True)
class Collected:
    """All of one choice."""

    events: list[Event] = field(default_factory=list[Event])
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    finish: OutputFinish | None = None
    stop_string: str | None = None
    reasoning_tokens: int = 0

    def add(self, update: Update) -> None:
        self.events += update.events
        self.ids += update.ids
        self.logprobs += update.logprobs
        self.finish = update.finish
        self.stop_string = update.stop_string
        self.reasoning_tokens += _reasoning_tokens(update)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one API request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int = 0
    """Of the completion: those that came as reasoning alone."""

    def openai(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Writer(Protocol):
    """One dialect's way to say what was generated. Frames are bytes of a stream, possibly none."""

    prompt_tokens: int
    headers: dict[str, str]

    def opening(self) -> bytes:
        """Frames that can be sent before the engine has done anything; at least one."""
        ...

    def started(self, cached_tokens: int) -> bytes:
        """Frames of the moment before the first update: it is known now what was cached."""
        ...

    def update(self, update: Update) -> bytes:
        """Frames of one update."""
        ...

    def heartbeat(self) -> bytes:
        """A real event that says nothing."""
        ...

    def closing(self, usage: Usage) -> bytes:
        """Frames after the last update, with the terminal one."""
        ...

    def failure(self, error: BaseException) -> bytes:
        """Frames that end a stream early."""
        ...

    def whole(self, choices: list[Collected], usage: Usage) -> dict[str, Any]:
        """The answer as one document."""
        ...


async def respond(
    request: Request,
    generation: Generation,
    writer: Writer,
    choices: int,
    *,
    stream: bool,
    note_error: Callable[[BaseException], None],
) -> Response:
    """Answer a request whose generation has been admitted; `note_error` is told what ends a stream early."""
    if stream:

        def failure(error: BaseException) -> bytes:
            note_error(error)
            return writer.failure(error)

        return EventStream(generation, _frames(generation, writer), failure, writer.headers)
    collected = [Collected() for _ in range(choices)]
    async with generation, abort_on_disconnect(request.receive, generation.abort):
        async for update in generation.updates():
            if update is not None:
                collected[update.index].add(update)
    usage = Usage(
        writer.prompt_tokens,
        sum(len(choice.ids) for choice in collected),
        generation.cached_tokens,
        sum(choice.reasoning_tokens for choice in collected),
    )
    return json_response(writer.whole(collected, usage), writer.headers)


async def _frames(generation: Generation, writer: Writer) -> AsyncIterator[bytes]:
    """Frames as updates come, and after every `HEARTBEAT_S` without one, whatever the engine does meanwhile."""
    completion_tokens = reasoning_tokens = 0
    has_started = False
    now_s = asyncio.get_running_loop().time
    yield writer.opening()
    said_s = now_s()
    async for update in generation.updates(HEARTBEAT_S):
        data = b""
        if update is not None:
            if not has_started:
                has_started = True
                data = writer.started(generation.cached_tokens)
            data += writer.update(update)
            completion_tokens += len(update.ids)
            reasoning_tokens += _reasoning_tokens(update)
        if not data and (update is None or now_s() - said_s >= HEARTBEAT_S):
            data = writer.heartbeat()
        if data:
            yield data
            said_s = now_s()
    usage = Usage(writer.prompt_tokens, completion_tokens, generation.cached_tokens, reasoning_tokens)
    yield writer.closing(usage)


def _reasoning_tokens(update: Update) -> int:
    events = update.events
    return len(update.ids) if events and all(isinstance(event, Reasoning) for event in events) else 0


def json_response(document: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(document), headers=headers, media_type="application/json")
