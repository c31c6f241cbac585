# SPDX-License-Identifier: MIT
"""A scripted engine behind the real HTTP server: the double for tests of what the front alone decides.

It yields the tokens of a given text, and can fail, hang or refuse on request. It checks nothing an engine
checks, save what the real front's `generate` refuses by itself. The server runs in a thread, on a free port
of the loopback.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn

from tokenspeed.base import config
from tokenspeed.base.clock import MonotonicClock
from tokenspeed.base.errors import TokenSpeedError
from tokenspeed.base.sampling import SamplingParams, TokenLogprob
from tokenspeed.engine import wire
from tokenspeed.engine.source import BUNDLED
from tokenspeed.obs.history import History
from tokenspeed.obs.metrics import Metrics
from tokenspeed.obs.requests import RecentRequests
from tokenspeed.obs.sample import SessionAccount
from tokenspeed.serve import app
from tokenspeed.serve.service import Service
from tokenspeed.text.plane import TextPlane

CONTEXT_TOKENS = 4096


@dataclass
class Script:
    """What the next requests are answered with."""

    text: str = "Hello there."
    finish: str = "stop"
    per_delta: int = 1  # tokens of one delta
    hangs: bool = False  # after the text, nothing comes until the request is aborted
    refusal: TokenSpeedError | None = None  # raised by generate
    failure: Exception | None = None  # raised after the text
    error: str | None = None
    cached_tokens: int = 0


@dataclass
class ScriptedStream:
    """One answer."""

    engine: ScriptedEngine
    script: Script
    ids: list[int]
    sampling: SamplingParams
    output_tokens: int = 0
    cached_tokens: int = 0
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    def abort(self, reason: str = "client") -> None:
        if not self.ended:
            self.ended = True
            self.engine.aborts.put(reason)
            self.aborted.set()

    async def __aiter__(self) -> AsyncIterator[wire.Delta]:
        script = self.script
        self.cached_tokens = script.cached_tokens
        ids = self.ids[: self.sampling.tokens_max or None]
        cut = len(ids) < len(self.ids)
        for start in range(0, len(ids), script.per_delta):
            group = ids[start : start + script.per_delta]
            last = start + script.per_delta >= len(ids) and not (script.hangs or script.failure)
            finish = ("length" if cut else script.finish) if last else None
            if self.aborted.is_set():
                break
            self.output_tokens += len(group)
            self.ended = finish is not None  # before its reader may leave
            yield self._delta(group, finish)
            if finish:
                return
            await asyncio.sleep(0)
        if script.failure is not None:
            self.ended = isinstance(script.failure, TokenSpeedError)
            raise script.failure
        await self.aborted.wait()
        yield wire.Delta(0, b"", finish="cancelled")

    def _delta(self, group: list[int], finish: Any) -> wire.Delta:
        logprobs = None
        if self.sampling.logprobs is not None:
            top = [(i, -0.5 - n) for n, i in enumerate(range(65, 65 + self.sampling.logprobs))]
            logprobs = [TokenLogprob(i, -0.25, top, 1) for i in group]
        return wire.Delta(0, wire.ids_bytes(np.array(group)), logprobs, finish, 0, self.script.error)


class ScriptedEngine:
    """Stands in for `engine.front.AsyncEngine`."""

    def __init__(self, text: TextPlane) -> None:
        self.text = text
        self.script = Script()
        self.healthy = True
        self.metrics = Metrics(lambda: None)
        self.clock = MonotonicClock()
        self.requests = RecentRequests()
        self.history = History()
        self.stats: wire.Stats | None = None
        self.calls: list[tuple[list[int], SamplingParams, dict[str, Any]]] = []
        self.aborts: queue.Queue[str] = queue.Queue()
        self.rests: list[tuple[str, wire.Idle, str | None]] = []
        self.closed: list[tuple[bytes, str]] = []
        self.accounts: dict[tuple[bytes, str], SessionAccount] = {}
        self.ready = wire.Ready(
            pid=1, device="cpu: scripted", vocab_size=8192, context_tokens_max=CONTEXT_TOKENS, block_tokens=64,
            blocks_total=128, slots_max=8, waiting_max=64, overlap=False, choices=[("device", "none", "scripted")],
        )  # fmt: skip

    def rest(self, salt: bytes, session: str, idle: wire.Idle, tool: str | None = None) -> None:
        self.rests.append((session, idle, tool))

    def close_session(self, salt: bytes, session: str) -> None:
        self.closed.append((salt, session))

    async def session(self, salt: bytes, session: str) -> SessionAccount | None:
        return self.accounts.get((salt, session))

    def generate(self, ids: list[int], sampling: SamplingParams, **origin: Any) -> ScriptedStream:
        if self.script.refusal is not None:
            raise self.script.refusal
        self.calls.append((list(ids), sampling, origin))
        answer = self.text.tokenizer.encode(self.script.text, add_special_tokens=False)
        if self.script.finish == "stop" and not (self.script.hangs or self.script.failure):
            answer.append(self.text.stop_ids[0])
        return ScriptedStream(self, self.script, answer, sampling)


@dataclass
class Serving:
    """A running server and what stands behind it."""

    url: str
    engine: ScriptedEngine
    service: Service


@contextmanager
def serving(**options: Any) -> Iterator[Serving]:
    """Serve a scripted engine with the bundled model's text plane."""
    text = TextPlane.load(BUNDLED)
    engine = ScriptedEngine(text)
    service = Service(engine, text, config.build(**options), "demo")
    settings = uvicorn.Config(
        app.build(service),
        port=0,
        http="httptools",
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(settings)
    listening = threading.Event()
    startup = server.startup

    async def announce(sockets: Any = None) -> None:
        await startup(sockets)
        listening.set()

    server.startup = announce  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert listening.wait(20)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Serving(f"http://127.0.0.1:{port}", engine, service)
    finally:
        server.should_exit = True
        thread.join(10)
        service.close()
