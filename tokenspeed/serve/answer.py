# SPDX-License-Identifier: MIT
"""From a generation to an HTTP answer, through the writer of a dialect.

A `Writer` turns updates into events (streamed) or collected choices into one document (whole); both see the
same events of the same path, so a streamed answer joined is the whole one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.base.sampling import TokenLogprob
from tokenspeed.serve.generation import Generation, Update
from tokenspeed.serve.sse import DONE, EventStream, abort_on_disconnect, frame
from tokenspeed.text.events import Event
from tokenspeed.text.output import OutputFinish

HEARTBEAT_S: Final = 10.0


@dataclass(slots=True)
class Collected:
    """All of one choice."""

    events: list[Event] = field(default_factory=list[Event])
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    finish: OutputFinish | None = None

    def add(self, update: Update) -> None:
        self.events += update.events
        self.ids += update.ids
        self.logprobs += update.logprobs
        self.finish = update.finish


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one API request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Writer(Protocol):
    """One dialect's way to say what was generated."""

    prompt_tokens: int

    def opening(self) -> list[dict[str, Any]]:
        """Events that can be sent before anything is generated."""
        ...

    def update(self, update: Update) -> list[dict[str, Any]]:
        """Events of one update."""
        ...

    def heartbeat(self) -> dict[str, Any]:
        """A real event that says nothing."""
        ...

    def closing(self, usage: Usage) -> list[dict[str, Any]]:
        """Events after the last update."""
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
        return EventStream(generation, _frames(generation, writer), note_error)
    collected = [Collected() for _ in range(choices)]
    async with generation, abort_on_disconnect(request.receive, generation.abort):
        async for update in generation.updates():
            if update is not None:
                collected[update.index].add(update)
    usage = Usage(writer.prompt_tokens, sum(len(c.ids) for c in collected), generation.cached_tokens)
    return json_response(writer.whole(collected, usage))


async def _frames(generation: Generation, writer: Writer) -> AsyncIterator[bytes]:
    completion_tokens = 0
    yield b"".join(map(frame, writer.opening()))
    async for update in generation.updates(HEARTBEAT_S):
        if update is None:
            yield frame(writer.heartbeat())
            continue
        completion_tokens += len(update.ids)
        events = writer.update(update)
        if events:
            yield b"".join(map(frame, events))
    usage = Usage(writer.prompt_tokens, completion_tokens, generation.cached_tokens)
    yield b"".join(map(frame, writer.closing(usage))) + DONE


def json_response(document: Any) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")
