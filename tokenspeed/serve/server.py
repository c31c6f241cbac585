# SPDX-License-Identifier: MIT
"""The life of a serving process: claim the port, start the engine, serve, drain, stop.

In: an `EngineConfig`. Everything that can be wrong with it is a `SetupError` before the first request; the
port is claimed first, so that a taken one is known at once. Core and text plane load side by side. SIGTERM
lets open requests finish for `DRAIN_S`, then ends them with their terminal event; SIGINT does not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Final

import uvicorn

from tokenspeed.base import log
from tokenspeed.base.config import EngineConfig
from tokenspeed.base.errors import SetupError
from tokenspeed.engine.front import AsyncEngine
from tokenspeed.engine.source import locate, locate_tokenizer
from tokenspeed.serve import app
from tokenspeed.serve.auth import check_exposure
from tokenspeed.serve.banner import banner
from tokenspeed.serve.service import Service
from tokenspeed.text.plane import TextPlane

DRAIN_S: Final = 20.0
_CLOSE_S: Final = 5  # for streams to write their terminal events after the drain
_KEEP_ALIVE_S: Final = 75  # longer than the pools of common clients keep idle connections
_BACKLOG: Final = 2048


def serve(config: EngineConfig) -> None:
    """Serve until told to stop; `SetupError` if it cannot begin."""
    check_exposure(config.server)
    directory = locate(config.model.model)
    log.adopt("uvicorn")
    loop_factory = uvicorn.Config("", loop="uvloop", log_config=None).get_loop_factory()
    with (
        _claim(config.server.host, config.server.port) as listener,
        asyncio.Runner(loop_factory=loop_factory) as runner,
    ):
        runner.run(_serve(config, directory, listener))


async def _serve(config: EngineConfig, directory: Path, listener: socket.socket) -> None:
    started_s = time.monotonic()
    model_name = served_name(config, directory)
    trace = _tracing(config.server.otel_endpoint, model_name)
    engine, text = await start(config, directory)
    ending = Ending(engine)
    stop_tracing = trace(engine)
    try:
        service = Service(engine, text, config, model_name)
        settings = uvicorn.Config(
            app.build(service),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(DRAIN_S) + _CLOSE_S,
            backlog=_BACKLOG,
        )
        port = listener.getsockname()[1]
        start_s = time.monotonic() - started_s
        chat = text.template is not None
        said = banner(engine.ready, service.model_name, config.server, port, start_s, chat=chat)
        await _Server(settings, service, ending, said).serve([listener])
        service.close()
    finally:
        await ending.finish(patience_s=0)
        await asyncio.to_thread(stop_tracing)


def _tracing(endpoint: str | None, model_name: str) -> Callable[[AsyncEngine], Callable[[], None]]:
    """A function that begins to trace an engine and returns one that ends it; `SetupError` without the extra."""
    if endpoint is None:
        return lambda engine: lambda: None
    from tokenspeed.obs import spans  # here, because it needs an extra

    provider = spans.provider_to(endpoint)

    def begin(engine: AsyncEngine) -> Callable[[], None]:
        engine.requests.on_end = spans.RequestSpans(provider, engine.clock, model_name)
        return provider.shutdown

    return begin


async def start(config: EngineConfig, directory: Path) -> tuple[AsyncEngine, TextPlane]:
    """Start a core and load the text plane of a model, side by side; `SetupError` from whichever fails."""
    tokenizer = None if config.model.tokenizer is None else locate_tokenizer(config.model.tokenizer)
    found = replace(config, model=replace(config.model, model=str(directory)))  # the core need not look again
    starting = asyncio.create_task(AsyncEngine.start(found))
    try:
        text = await asyncio.to_thread(
            TextPlane.load,
            directory,
            tokenizer_directory=tokenizer,
            tool_call_parser=config.model.tool_call_parser,
            reasoning_parser=config.model.reasoning_parser,
        )
    except BaseException:
        starting.cancel()
        for started in await asyncio.gather(starting, return_exceptions=True):
            if isinstance(started, AsyncEngine):
                await started.stop()
        raise
    engine = await starting
    return engine, text.within(engine.ready.vocab_size)


class Ending:
    """The end of the engine: once, however often it is asked for, and sooner if asked again."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self, *, patience_s: float) -> None:
        """Let open requests finish for `patience_s`, then stop the engine."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._end(patience_s))
        else:
            self._hurry.set()

    async def finish(self, *, patience_s: float) -> None:
        """Begin, unless it has begun, and wait for the end."""
        if self._task is None:
            self.begin(patience_s=patience_s)
        assert self._task is not None
        await self._task

    async def _end(self, patience_s: float) -> None:
        waits = [
            asyncio.ensure_future(self._engine.drain(patience_s)),
            asyncio.ensure_future(self._hurry.wait()),
        ]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await self._engine.stop()


class _Server(uvicorn.Server):
    """uvicorn, with a drain of the engine between the signal and the end."""

    def __init__(self, settings: uvicorn.Config, service: Service, ending: Ending, said: str) -> None:
        super().__init__(settings)
        self._service = service
        self._ending = ending
        self._said = said

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and only then say so: whoever reads the banner may connect."""
        await super().startup(sockets)
        print(self._said, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Called by the base class around serving."""
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(sig, self._on_signal, sig)
        try:
            yield
        finally:
            for sig in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(sig)

    def _on_signal(self, sig: signal.Signals) -> None:
        """The first signal begins the drain; a second one ends it. SIGINT does not wait."""
        self._service.draining = True
        self.should_exit = True
        self._ending.begin(patience_s=0.0 if sig == signal.SIGINT else DRAIN_S)


def served_name(config: EngineConfig, directory: Path) -> str:
    """The name clients use: the one configured, the hub id as given, or the directory's name."""
    model = config.model.model
    if config.model.served_model_name is not None:
        return config.model.served_model_name
    return directory.name if model is None or Path(model).expanduser().is_dir() else model


def _claim(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise SetupError(f"--host {host}: not an address of this machine ({error.strerror})") from error
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SetupError(f"port {port} is taken; use --port N, or --port 0 for a free one") from error
        raise SetupError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener
