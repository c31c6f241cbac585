# SPDX-License-Identifier: MIT
"""The API process's end of the engine: requests in, streams of deltas out. No torch, no text.

In: token ids and sampling. Out: a `Stream` per request. Checks what can be checked before any work
(lengths, ranges, capacity), draws seeds, clamps `tokens_max` to the context. Does not tokenise, detokenise
or know API dialects.

Invariants: one asyncio loop owns an engine; nothing here blocks it. Every stream ends exactly once: with a
delta whose `finish` is set, or by raising `CapacityError`, `RequestError` or `EngineDeadError`. What a
stream holds for a reader that does not come is bounded by `tokens_max`; the core never waits for a reader.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Literal, Protocol, Self

import numpy as np

from tokenspeed.base.clock import Clock, MonotonicClock
from tokenspeed.base.config import EngineConfig
from tokenspeed.base.constraint import Constraint
from tokenspeed.base.errors import (
    CapacityError,
    EngineDeadError,
    PromptTooLongError,
    RequestError,
    TokenSpeedError,
)
from tokenspeed.base.log import get_logger
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.engine import admission, identity, launch, wire
from tokenspeed.obs.history import History
from tokenspeed.obs.metrics import Metrics
from tokenspeed.obs.requests import RecentRequests, RequestTimeline
from tokenspeed.obs.sample import SessionAccount

_log = get_logger("engine")
HEALTH_S: Final = 10.0  # a core that reported nothing for so long is not healthy
STOP_GRACE_S: Final = 5.0
ASK_S: Final = 5.0
RETRY_AFTER_MAX_S: Final = 600
AbortReason = Literal["client", "stop_string", "deadline", "shutdown"]


class Stream:
    """One request's answer: an async iterator of deltas, each holding all that came since the last.

    Leaving it early (`aclose`, or the end of its `async with`) aborts the request.
    """

    def __init__(self, engine: AsyncEngine, timeline: RequestTimeline) -> None:
        self.timeline = timeline
        self._engine = engine
        self._pending: list[wire.Delta] = []
        self._error: TokenSpeedError | None = None
        self._ended = False  # the closing message is here, though perhaps not read
        self._wake: asyncio.Future[None] | None = None

    @property
    def request_id(self) -> int:
        return self.timeline.request_id

    @property
    def prompt_tokens(self) -> int:
        return self.timeline.prompt_tokens

    @property
    def output_tokens(self) -> int:
        return self.timeline.output_tokens

    @property
    def cached_tokens(self) -> int:
        return self.timeline.cached_tokens

    @property
    def ended(self) -> bool:
        """Nothing more will come."""
        return self._ended

    def abort(self, reason: AbortReason = "client") -> None:
        """Stop the request now; the stream ends with finish "cancelled". Harmless once it has ended."""
        self._engine.abort(self, reason)

    async def aclose(self) -> None:
        self.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> wire.Delta:
        while not self._pending:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        deltas, self._pending = self._pending, []
        return deltas[0] if len(deltas) == 1 else _merged(deltas)

    def put(self, delta: wire.Delta, now_us: int) -> None:
        """Called by the engine: the core has something to say."""
        if delta.queue_us is not None:
            self._start(delta.queue_us, delta.cached_tokens or 0, now_us)
        self.timeline.retractions = max(self.timeline.retractions, delta.retractions)
        tokens = len(delta.ids) // wire.IDS_DTYPE.itemsize
        if tokens:
            self._count(tokens, now_us)
        self._pending.append(delta)
        if delta.finish is not None:
            self._close(delta.finish, now_us)
        self._notify()

    def fail(self, error: TokenSpeedError, reason: str) -> None:
        """Called by the engine: the stream ends with an error, after what is pending."""
        self._error = error
        self._close(reason, self._engine.clock.now_us())
        self._notify()

    def _start(self, queue_us: int, cached_tokens: int, now_us: int) -> None:
        """A step has run the request for the first time."""
        timeline = self.timeline
        timeline.note_first_step(timeline.queued_us + queue_us, cached_tokens)
        self._engine.metrics.queue_s.observe(queue_us / 1e6)
        self._engine.history.note_start(
            now_us, prompt_tokens=timeline.prompt_tokens, cached_tokens=cached_tokens
        )

    def _count(self, tokens: int, now_us: int) -> None:
        """Tokens came."""
        metrics = self._engine.metrics
        first = not self.timeline.output_tokens
        since_us = self.timeline.note_tokens(tokens, now_us)
        self._engine.history.note_tokens(now_us, tokens, since_us, first=first)
        if first:
            metrics.first_token_s.observe(since_us / 1e6)
        gaps, gap_us = (tokens - 1, 0.0) if first else (tokens, since_us / tokens)
        for _ in range(gaps):
            metrics.inter_token_s.observe(gap_us / 1e6)

    def _close(self, reason: str, now_us: int) -> None:
        self._ended = True
        self._engine.requests.end(self.timeline, reason, now_us)
        metrics = self._engine.metrics
        metrics.finished.labels(reason).inc()
        metrics.request_s.observe((now_us - self.timeline.received_us) / 1e6)
        metrics.output_tokens.observe(self.output_tokens)
        metrics.open.dec()
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s", self.timeline)

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Core(Protocol):
    """What the front needs of `launch.CoreProcess`."""

    @property
    def ready(self) -> wire.Ready: ...

    def listen(self, on_report: Callable[[wire.Report], None], on_death: Callable[[str], None]) -> None: ...

    def send(self, message: wire.Message) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


class AsyncEngine:
    """An engine in a process of its own. Made by `start`, ended by `stop`."""

    def __init__(self, core: Core, clock: Clock | None = None) -> None:
        self.clock = clock or MonotonicClock()
        """The clock of every time in `requests` and `history`; its epoch is the core's."""
        self.requests = RecentRequests()
        self.history = History()
        self.ready = core.ready
        """What the core chose and measured at start."""
        self.stats: wire.Stats | None = None
        """The core's latest word of itself."""
        self.metrics = Metrics(lambda: None if self.stats is None else self.stats.core)
        self._core = core
        self._streams: dict[int, Stream] = {}
        self._asked: dict[int, asyncio.Future[SessionAccount | None]] = {}
        self.streams_max = core.ready.waiting_max + core.ready.slots_max
        """Most streams open at once."""
        self._ids = itertools.count(1)
        self._heard_s = time.monotonic()
        self._ended_s: deque[float] = deque(maxlen=32)
        self._dead: str | None = None
        self._drained = asyncio.Event()
        self._drained.set()
        core.listen(self._on_report, self._on_death)

    @classmethod
    async def start(cls, config: EngineConfig) -> Self:
        """Spawn a core and wait until it can serve; `SetupError` with its reason if it cannot."""
        return cls(await launch.spawn(config))

    @property
    def healthy(self) -> bool:
        """The core lives and reported within ten seconds (it does so four times a second, also when idle)."""
        return self._dead is None and time.monotonic() - self._heard_s < HEALTH_S

    @property
    def requests_open(self) -> int:
        return len(self._streams)

    def generate(
        self,
        ids: np.ndarray | Sequence[int],
        sampling: SamplingParams,
        *,
        salt: bytes = b"",
        priority: int = 0,
        session: str | None = None,
        root: str | None = None,
        floor_mtps: int = 0,
        deadline_us: int = 0,
        final: bool = False,
        retain_us: int = 0,
        answer_id: str = "",
        received_us: int | None = None,
        traceparent: str | None = None,
        constraint: Constraint | None = None,
    ) -> Stream:
        """Start a request on a prompt of token ids [n].

        `session` names the run of requests it continues, `root` the session that this one is a part of, `final`
        says that none will follow. `floor_mtps` is promised to it once it is admitted; it is not begun after
        `deadline_us`, on this engine's clock. `answer_id` is what its caller calls it, `received_us` when it came
        to the caller, now if absent, `traceparent` the trace it is part of; all for `requests` alone. `constraint`
        is what the answer must look like; a recorded answer is said as it is. Raises `RequestError` for what the caller
        can correct, `CapacityError` when too many requests are open, and `EngineDeadError` when there is no core.
        Copies `ids`.
        """
        if self._dead is not None:
            raise EngineDeadError(self._dead)
        prompt = _as_integers(ids)
        try:
            self.check(prompt, sampling)
            if len(self._streams) >= self.streams_max:
                self.metrics.refused.labels("queue_full").inc()
                raise self._capacity_error()
        except RequestError as error:
            self.metrics.refused.labels(error.code).inc()
            raise
        arrival_us = self.clock.now_us()
        request_id = next(self._ids)
        timeline = self.requests.open(
            request_id,
            prompt_tokens=len(prompt),
            received_us=arrival_us if received_us is None else received_us,
            queued_us=arrival_us,
            answer_id=answer_id,
            session=session,
            traceparent=traceparent,
        )
        stream = Stream(self, timeline)
        self._streams[request_id] = stream
        self._drained.clear()
        self.metrics.open.inc()
        self.metrics.prompt_tokens.observe(len(prompt))
        self._core.send(
            wire.Generate(
                request_id,
                wire.ids_bytes(prompt),
                admission.complete(
                    sampling, prompt_tokens=len(prompt), context_tokens_max=self.ready.context_tokens_max
                ),
                salt,
                priority,
                identity.session_id(salt, session),
                arrival_us,
                None if sampling.forced else constraint,
                identity.session_id(salt, root),
                identity.tenant_id(salt),
                floor_mtps,
                deadline_us,
                final,
                retain_us,
            )
        )
        return stream

    def abort(self, stream: Stream, reason: AbortReason) -> None:
        """End a stream now and tell the core; harmless once it has ended."""
        if self._streams.pop(stream.request_id, None) is None:
            return
        self.metrics.aborted.labels(reason).inc()
        self._core.send(wire.Abort([stream.request_id]))
        stream.put(wire.Delta(stream.request_id, b"", finish="cancelled"), self.clock.now_us())
        self._note_end()

    def rest(self, salt: bytes, session: str, idle: wire.Idle, tool: str | None = None) -> None:
        """A turn of a session has ended: it waits for a tool, for a person, or who knows."""
        if self._dead is None:
            self._core.send(wire.Rest(identity.session_id(salt, session), idle, identity.gap_key(tool)))

    def close_session(self, salt: bytes, session: str) -> None:
        """No further request of a session will come; what was kept for it is free."""
        if self._dead is None:
            self._core.send(wire.Close(identity.session_id(salt, session)))

    async def session(self, salt: bytes, session: str) -> SessionAccount | None:
        """What a session has used; None where it is not remembered. `EngineDeadError` without a core."""
        if self._dead is not None:
            raise EngineDeadError(self._dead)
        ticket = next(self._ids)
        answer: asyncio.Future[SessionAccount | None] = asyncio.get_running_loop().create_future()
        self._asked[ticket] = answer
        self._core.send(wire.Ask(ticket, identity.session_id(salt, session)))
        try:
            return await asyncio.wait_for(answer, ASK_S)
        except TimeoutError as error:
            raise CapacityError("the engine is busy; try again", retry_after_s=1, status=503) from error
        finally:
            del self._asked[ticket]

    def flush_prefix(self) -> None:
        """Forget every reusable prefix that nobody is using."""
        self._core.send(wire.Flush())

    async def drain(self, timeout_s: float) -> bool:
        """Wait until no stream is open; False if `timeout_s` passed first."""
        if self._drained.is_set():
            return True
        try:
            await asyncio.wait_for(self._drained.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Abort what is open, end the core and wait for it."""
        for stream in list(self._streams.values()):
            self.abort(stream, "shutdown")
        if self._dead is None:
            self._dead = "the engine was stopped"
        await self._core.stop(STOP_GRACE_S)

    def check(self, ids: np.ndarray | Sequence[int], sampling: SamplingParams) -> None:
        """Raise the `RequestError` that `generate` would raise; starts nothing."""
        admission.check(
            _as_integers(ids),
            sampling,
            vocab_size=self.ready.vocab_size,
            context_tokens_max=self.ready.context_tokens_max,
        )

    def _capacity_error(self) -> CapacityError:
        """Advise the wait after which, at the recent rate of ends, a place is free."""
        wait_s = 1.0
        if len(self._ended_s) > 1:
            wait_s = (self._ended_s[-1] - self._ended_s[0]) / (len(self._ended_s) - 1)
        return CapacityError(
            f"{len(self._streams)} requests are open, as many as this engine holds; try again later",
            retry_after_s=min(60, max(1, round(wait_s))),
        )

    def _on_report(self, report: wire.Report) -> None:
        self._heard_s = time.monotonic()
        match report:
            case wire.Deltas():
                now_us = self.clock.now_us()
                for delta in report.items:
                    self._deliver(delta, now_us)
            case wire.Stats():
                self.stats = report
                self.history.note_core(self.clock.now_us(), report.core)
            case wire.Refused():
                stream = self._streams.pop(report.request_id, None)
                if stream is not None:
                    self.metrics.refused.labels(report.reason).inc()
                    stream.fail(self._refusal(report, stream), "refused")
                    self._note_end()
            case wire.SessionReport():
                answer = self._asked.get(report.ticket)
                if answer is not None and not answer.done():
                    answer.set_result(report.account)
            case wire.Ready() | wire.Failed():
                _log.error("the core announced itself twice; ignored")

    def _deliver(self, delta: wire.Delta, now_us: int) -> None:
        stream = self._streams.get(delta.request_id)
        if stream is None:  # aborted here, before the core knew
            return
        if delta.finish is not None:
            del self._streams[delta.request_id]
            self._note_end()
        stream.put(delta, now_us)

    def _refusal(self, refused: wire.Refused, stream: Stream) -> TokenSpeedError:
        reason, retry_after_s = refused.reason, _seconds(refused.retry_after_us)
        if reason == "queue_full":
            return self._capacity_error()
        if reason == "door_full":
            return CapacityError(
                "the sessions in progress need all of the KV there is; a new one may be admitted later",
                retry_after_s=retry_after_s,
            )
        if reason == "deadline":
            return CapacityError(
                "the request had not begun by its deadline", retry_after_s=retry_after_s, status=503
            )
        if reason in ("too_long", "exceeds_pool"):
            pool_tokens = self.ready.blocks_total * self.ready.block_tokens
            tokens_max = min(self.ready.context_tokens_max, pool_tokens) - 1
            return PromptTooLongError(stream.prompt_tokens, tokens_max)
        if reason == "grammar":
            return RequestError(
                "the format asked for cannot be compiled for this model",
                code="invalid_value",
                param="response_format",
            )
        return RequestError(
            f"the engine refused a prompt of {stream.prompt_tokens} tokens: {reason.replace('_', ' ')}",
            code="invalid_value",
            param="prompt",
        )

    def _note_end(self) -> None:
        self._ended_s.append(time.monotonic())
        if not self._streams:
            self._drained.set()

    def _on_death(self, cause: str) -> None:
        if self._dead is not None:
            return
        self._dead = f"the engine's core process is gone: {cause}"
        _log.error("%s; %d streams end", self._dead, len(self._streams))
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(EngineDeadError(self._dead), "engine_dead")
        self._drained.set()


def _seconds(us: int) -> int:
    """A wait to advise."""
    return min(RETRY_AFTER_MAX_S, max(1, round(us / 1e6)))


def _as_integers(ids: np.ndarray | Sequence[int]) -> np.ndarray:
    """Ids as an array [n]; ids that are one already are not converted."""
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "i":
        return ids
    return np.asarray(ids, dtype=np.int64)


def _merged(deltas: list[wire.Delta]) -> wire.Delta:
    """One delta that says what all say."""
    first, last = deltas[0], deltas[-1]
    told = next((delta for delta in deltas if delta.queue_us is not None), first)
    logprobs = [entry for delta in deltas for entry in delta.logprobs or ()]
    return wire.Delta(
        first.request_id,
        b"".join(delta.ids for delta in deltas),
        logprobs or None,
        last.finish,
        told.cached_tokens,
        last.error,
        told.queue_us,
        last.retractions,
    )
