# SPDX-License-Identifier: MIT
"""Start the core process, talk to it, and know at once when it is gone. No torch here.

In: an `EngineConfig`. Out: a `CoreProcess` that has said `Ready`, or `SetupError` with what it said
instead. Two ZeroMQ sockets (requests out, reports in) lie in a private directory that only this user can
enter. A socket pair, the core's stdin, is the tether: it carries the configuration, and its end-of-file
tells either process that the other died, whatever killed it. Does not restart a core, and gives reports no
meaning.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import zmq

from tokenspeed.base.config import EngineConfig, ServerConfig
from tokenspeed.base.errors import SetupError
from tokenspeed.base.log import get_logger
from tokenspeed.engine import wire

_log = get_logger("engine")
REQUESTS: Final = "requests"
REPORTS: Final = "reports"
CONFIG_LENGTH: Final = struct.Struct("<I")
FRAMES_PER_WAKE: Final = 256  # then other tasks of the event loop have their turn
LAST_WORDS_S: Final = 0.1  # what the core sent before it died is still under way for a moment
_SOCKET_PATH_MAX: Final = 100  # bytes; the operating systems' limit is 104 to 108


async def spawn(config: EngineConfig) -> CoreProcess:
    """Start a core and wait until it can serve; `SetupError` if it cannot."""
    core = CoreProcess(config)
    try:
        await core.boot()
    except BaseException:
        await core.stop(0)
        raise
    return core


class CoreProcess:
    """A core, from its start to its end. Bound to the asyncio loop it was made on; use `spawn`."""

    def __init__(self, config: EngineConfig) -> None:
        self._loop = asyncio.get_running_loop()
        self._home = _private_directory()
        self._directory = Path(self._home.name)
        self._context = zmq.Context()
        self._reports = open_socket(self._context, zmq.PULL)
        self._reports.bind(f"ipc://{self._directory / REPORTS}")
        self._requests = open_socket(self._context, zmq.PUSH)  # connects once the core has bound its end
        self._first: asyncio.Future[wire.Ready] = self._loop.create_future()
        self._on_report: Callable[[wire.Report], None] = self._on_first_report
        self._on_death: Callable[[str], None] = self._on_early_death
        self._cause: str | None = None
        self._tether, core_end = socket.socketpair()
        document = msgspec.msgpack.encode(_of_core(config))
        self._tether.sendall(CONFIG_LENGTH.pack(len(document)) + document)  # waits in the pair's buffer
        command = [sys.executable, "-m", "tokenspeed.engine.core", str(self._directory)]
        with core_end:
            self._process = subprocess.Popen(command, stdin=core_end.fileno(), stdout=2)
        self._loop.add_reader(self._tether, self._on_tether)
        self._loop.add_reader(self._reports.fileno(), self._on_readable)
        self._on_readable()

    @property
    def ready(self) -> wire.Ready:
        """What the core said first."""
        return self._first.result()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def boot(self) -> None:
        """Wait for `Ready`; `SetupError` if the core cannot start."""
        await self._first
        self._requests.connect(f"ipc://{self._directory / REQUESTS}")

    def listen(self, on_report: Callable[[wire.Report], None], on_death: Callable[[str], None]) -> None:
        """Have reports and the core's death delivered from now on."""
        self._on_report = on_report
        self._on_death = on_death
        if self._cause is not None:
            on_death(self._cause)

    def send(self, message: wire.Message) -> None:
        """Queue a message; never blocks. Lost if the core is gone, as its streams then are."""
        if self._cause is None:
            self._requests.send(wire.encode(message), zmq.NOBLOCK)

    async def stop(self, grace_s: float) -> None:
        """Ask the core to end, wait, then kill it; frees sockets and directory."""
        if self._context.closed:
            return
        self._on_death = lambda _cause: None
        if grace_s > 0:
            self.send(wire.Stop())
        try:
            await asyncio.wait_for(asyncio.to_thread(self._process.wait), grace_s)
        except TimeoutError:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        self._loop.remove_reader(self._reports.fileno())
        self._loop.remove_reader(self._tether)
        self._tether.close()
        self._context.destroy(linger=0)
        self._home.cleanup()

    def _on_readable(self) -> None:
        # The descriptor signals edges, not levels: read until nothing is left, or come back.
        for _ in range(FRAMES_PER_WAKE):
            try:
                frame = self._reports.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            except zmq.ZMQError:  # closed by `stop` while this call was queued
                return
            # Not called from here: a receiver that fails must lose one report, not the edge.
            self._loop.call_soon(self._handle, frame)
        self._loop.call_soon(self._on_readable)

    def _handle(self, frame: bytes) -> None:
        try:
            report = wire.decode_report(frame)
        except msgspec.MsgspecError as error:
            _log.error("dropped %d bytes of the core that are no report: %s", len(frame), error)
            return
        self._on_report(report)

    def _on_tether(self) -> None:
        """The core's end is closed: nothing but the end of the process does that."""
        self._loop.remove_reader(self._tether)
        self._loop.call_later(LAST_WORDS_S, self._on_end)

    def _on_end(self) -> None:
        self._process.poll()
        self._cause = _describe_end(self._process.returncode)
        self._on_death(self._cause)

    def _on_first_report(self, report: wire.Report) -> None:
        if self._first.done():
            return
        match report:
            case wire.Ready():
                self._first.set_result(report)
            case wire.Failed():
                self._first.set_exception(SetupError(report.message))
            case _:
                _log.error("the core spoke before it was ready: %s", type(report).__name__)

    def _on_early_death(self, cause: str) -> None:
        if not self._first.done():
            message = f"the core process ended before it was ready: {cause}; its last log lines say why"
            self._first.set_exception(SetupError(message))


def _of_core(config: EngineConfig) -> EngineConfig:
    """The configuration without what is the server's alone, its key before all."""
    return dataclasses.replace(config, server=ServerConfig(log_level=config.server.log_level))


def _private_directory() -> tempfile.TemporaryDirectory[str]:
    """A fresh directory of mode 0700, its path short enough for sockets; removed at exit at the latest."""
    base = Path(tempfile.gettempdir())
    if len(bytes(base)) + len("/tokenspeed-12345678/") + len(REQUESTS) > _SOCKET_PATH_MAX:
        base = Path("/tmp")
    return tempfile.TemporaryDirectory(prefix="tokenspeed-", dir=base, ignore_cleanup_errors=True)


def open_socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    """A socket that never blocks a sender and never outlives a close."""
    made = context.socket(kind)
    made.setsockopt(zmq.SNDHWM, 0)  # what may queue is bounded by admission, not here
    made.setsockopt(zmq.RCVHWM, 0)
    made.setsockopt(zmq.LINGER, 0)
    return made


def _describe_end(status: int | None) -> str:
    if status is None:
        return "it closed its end"
    if status < 0:
        hint = " (often the system's answer to too little memory)" if status == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-status).name}{hint}"
    return f"exit code {status}"
