# SPDX-License-Identifier: MIT
"""The one generation path: choices in, updates out, for every API dialect, streamed or whole.

In: one `Choice` per answer wanted (several prompts, or `n`, are several choices). Out: `Update`s as they
come, and None where nothing came for a while. A `Generation` starts all its requests when made, so what the
engine refuses at once is raised before any byte of an answer; when it is left, for whatever reason, what
still runs is aborted (rule R9).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np

from tokenspeed.base.clock import Clock
from tokenspeed.base.constraint import Constraint
from tokenspeed.base.errors import CapacityError, TokenSpeedError
from tokenspeed.base.log import get_logger
from tokenspeed.base.sampling import SamplingParams, TokenLogprob
from tokenspeed.engine import wire
from tokenspeed.engine.front import AbortReason
from tokenspeed.obs.history import History
from tokenspeed.obs.metrics import Metrics
from tokenspeed.obs.requests import RecentRequests
from tokenspeed.obs.sample import SessionAccount
from tokenspeed.serve.errors import GenerationError
from tokenspeed.serve.sessions import Session
from tokenspeed.text.events import CallStart, Event
from tokenspeed.text.output import OutputFinish, OutputOptions, OutputReader
from tokenspeed.text.tokenizer import Tokenizer

_log = get_logger("serve")
_TAIL: Final = 16
"""Last ids of a prompt that a reader of its continuation may want to know."""


class TokenStream(Protocol):
    """One request's deltas, as `engine.front.Stream` gives them."""

    @property
    def output_tokens(self) -> int: ...

    @property
    def cached_tokens(self) -> int: ...

    def abort(self, reason: AbortReason = ...) -> None: ...

    def __aiter__(self) -> AsyncIterator[wire.Delta]: ...


class Engine(Protocol):
    """What the server needs of `engine.front.AsyncEngine`."""

    @property
    def healthy(self) -> bool: ...

    ready: wire.Ready
    stats: wire.Stats | None
    metrics: Metrics
    requests: RecentRequests
    history: History
    clock: Clock

    def generate(
        self,
        ids: np.ndarray | Sequence[int],
        sampling: SamplingParams,
        *,
        salt: bytes,
        priority: int,
        session: str | None,
        root: str | None,
        floor_mtps: int,
        deadline_us: int,
        final: bool,
        retain_us: int,
        answer_id: str,
        received_us: int | None,
        traceparent: str | None,
        constraint: Constraint | None,
    ) -> TokenStream: ...

    def rest(self, salt: bytes, session: str, idle: wire.Idle, tool: str | None = None) -> None: ...

    def close_session(self, salt: bytes, session: str) -> None: ...

    async def session(self, salt: bytes, session: str) -> SessionAccount | None: ...


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer to generate."""

    prompt: np.ndarray | Sequence[int]
    sampling: SamplingParams
    options: OutputOptions
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from, as the engine wants to know it."""

    salt: bytes = b""
    session: Session = field(default_factory=Session)
    received_us: int | None = None
    """On the engine's clock."""
    traceparent: str | None = None
    """The caller's trace, as W3C spells it."""


@dataclass(frozen=True, slots=True)
class Update:
    """What is new of one choice. `finish` is set on its last."""

    index: int
    events: list[Event]
    ids: list[int]
    logprobs: list[TokenLogprob]
    finish: OutputFinish | None
    stop_string: str | None = None
    """With `finish`: the stop string that ended it, if one did."""


class Generation:
    """All choices of one API request, running. Use as `async with`, then iterate `updates` once."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        choices: Sequence[Choice],
        origin: Origin,
        *,
        answer_id: str,
        per_prompt: int = 1,
        on_answer: Callable[[list[int]], None] | None = None,
    ) -> None:
        self._engine = engine
        self._origin = origin
        self._tools: dict[int, str] = {}  # the last tool that each choice called
        self._on_answer = on_answer  # told the ids of an answer that ended by itself
        self._per_prompt = per_prompt  # that many neighbouring choices share a prompt
        self._queue: asyncio.Queue[Update | TokenSpeedError] = asyncio.Queue(maxsize=len(choices) + 1)
        self._streams: list[TokenStream] = []
        self._tasks: list[asyncio.Task[None]] = []
        try:
            for choice in choices:
                self._streams.append(
                    engine.generate(
                        choice.prompt,
                        choice.sampling,
                        salt=origin.salt,
                        priority=origin.session.priority,
                        session=origin.session.id,
                        root=origin.session.root,
                        floor_mtps=origin.session.floor_mtps,
                        deadline_us=_deadline_us(origin, engine.clock),
                        final=origin.session.final,
                        retain_us=origin.session.retain_us,
                        answer_id=answer_id,
                        received_us=origin.received_us,
                        traceparent=origin.traceparent,
                        constraint=choice.constraint,
                    )
                )
        except TokenSpeedError:
            self.abort()
            raise
        self._readers = [
            OutputReader(tokenizer, c.options, prompt=np.asarray(c.prompt[-_TAIL:]).tolist()) for c in choices
        ]

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens whose KV was reused, each prompt counted once."""
        return sum(stream.cached_tokens for stream in self._streams[:: self._per_prompt])

    def abort(self) -> None:
        """End all choices now, because the client has gone."""
        for stream in self._streams:
            stream.abort("client")

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._pump(index)) for index in range(len(self._streams))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
        for task in self._tasks:
            task.cancel()

    async def updates(self, idle_s: float | None = None) -> AsyncIterator[Update | None]:
        """Yield updates until every choice has finished; None after every `idle_s` without one.

        Raises what ended a choice early: `CapacityError`, `RequestError`, `EngineDeadError` or
        `GenerationError`.
        """
        unfinished = len(self._streams)
        while unfinished:
            update = await self._next(idle_s)
            if isinstance(update, TokenSpeedError):
                raise update
            if update is not None and update.finish is not None:
                unfinished -= 1
            yield update

    def _note_rest(self, index: int) -> None:
        """Tell the engine what the session waits for, now that a turn has ended."""
        session = self._origin.session
        if session.id is not None and not session.final:
            tool = self._tools.get(index)
            self._engine.rest(self._origin.salt, session.id, "turn" if tool is None else "tool", tool)

    async def _next(self, idle_s: float | None) -> Update | TokenSpeedError | None:
        if not self._queue.empty():
            return self._queue.get_nowait()
        try:
            async with asyncio.timeout(idle_s):
                return await self._queue.get()
        except TimeoutError:
            return None

    async def _pump(self, index: int) -> None:
        """Read one stream to its end, or until its text says that it is over."""
        stream, reader = self._streams[index], self._readers[index]
        said: list[bytes] = []
        try:
            async for delta in stream:
                said.append(delta.ids)
                update = _read(index, reader, delta)
                if update.finish is not None and delta.finish is None:
                    stream.abort("stop_string")
                elif update.finish == "error":
                    raise GenerationError(delta.error or "the engine could not finish this answer")
                elif update.finish == "cancelled":
                    raise CapacityError("the server is shutting down", retry_after_s=1, status=503)
                self._tools.update(
                    (index, event.name) for event in update.events if isinstance(event, CallStart)
                )
                if update.finish is not None:
                    self._note_rest(index)
                await self._queue.put(update)
                if update.finish is not None:
                    if self._on_answer is not None and delta.finish == "stop":
                        self._on_answer(wire.ids_array(b"".join(said)).tolist())
                    return
        except TokenSpeedError as error:
            await self._queue.put(error)
        except Exception:  # noqa: BLE001  (a defect; the request must still end)
            _log.exception("reading an answer failed")
            stream.abort("client")
            await self._queue.put(GenerationError("internal error; the server's log has the details"))


def _deadline_us(origin: Origin, clock: Clock) -> int:
    if not origin.session.deadline_ms:
        return 0
    received_us = clock.now_us() if origin.received_us is None else origin.received_us
    return received_us + 1000 * origin.session.deadline_ms


def _read(index: int, reader: OutputReader, delta: wire.Delta) -> Update:
    ids: list[int] = wire.ids_array(delta.ids).tolist()
    events, taken = reader.read(ids, delta.finish)
    logprobs = (delta.logprobs or [])[:taken]
    return Update(index, events, ids[:taken], logprobs, reader.finish, reader.stop_string)
