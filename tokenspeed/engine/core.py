# SPDX-License-Identifier: MIT
"""The core process: `python -m tokenspeed.engine.core DIRECTORY`, started by `launch`.

In: the configuration on the tether (stdin), requests on a ZeroMQ socket in DIRECTORY. Out: reports on
another. Boots, says `Ready` or `Failed`, runs the loop until `Stop`. Ends when the front does; ignores the
signals a terminal or a service manager sends to the whole group, for the front decides when to stop.
Nothing received can end it: bytes that are no message are logged and dropped.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
import zmq

from tokenspeed.base import env, log
from tokenspeed.base.clock import MonotonicClock
from tokenspeed.base.config import EngineConfig
from tokenspeed.base.errors import SetupError
from tokenspeed.control import Scheduler
from tokenspeed.engine import launch, source, wire
from tokenspeed.engine.boot import Core, boot
from tokenspeed.engine.compilers import Compilers
from tokenspeed.engine.constraints import Constraints
from tokenspeed.engine.desk import Desk
from tokenspeed.engine.journal import NO_JOURNAL, Journal, JournalFile
from tokenspeed.engine.loop import STATS_EVERY_US, Loop
from tokenspeed.exec import facts
from tokenspeed.obs.timeline import Timeline
from tokenspeed.text.grammar.matcher import Vocabulary

_log = log.get_logger("engine")
MESSAGES_PER_TURN: Final = 1024
STEPS_DUMPED: Final = 8
LINGER_MS: Final = 1000
EXIT_SETUP: Final = 2


class Link:
    """The core's two sockets: the loop's mailbox and outbox."""

    def __init__(self, directory: Path) -> None:
        self._context = zmq.Context()
        self._requests = launch.open_socket(self._context, zmq.PULL)
        self._requests.bind(f"ipc://{directory / launch.REQUESTS}")
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = zmq.Poller()
        self._poller.register(self._requests, zmq.POLLIN)
        self._poller.register(self._alarm, zmq.POLLIN)
        self._reports = launch.open_socket(self._context, zmq.PUSH)
        self._reports.connect(f"ipc://{directory / launch.REPORTS}")

    def drain(self, *, wait: bool) -> Iterator[wire.Request]:
        """All messages that are here; with `wait`, wait a bounded time for the first."""
        if wait and self._alarm in dict(self._poller.poll(STATS_EVERY_US // 1000)):
            os.eventfd_read(self._alarm)
        for _ in range(MESSAGES_PER_TURN):
            try:
                frame = self._requests.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                yield wire.decode_request(frame)
            except msgspec.MsgspecError as error:
                _log.error("dropped %d bytes that are no message: %s", len(frame), error)

    def wake(self) -> None:
        """End a wait in `drain`, from any thread: something is ready that is no message."""
        os.eventfd_write(self._alarm, 1)

    def send(self, report: wire.Report) -> None:
        """Queue a report. Never blocks: the queue is as long as admitted requests' answers."""
        self._reports.send(wire.encode(report), zmq.NOBLOCK)

    def close(self) -> None:
        """Let what is queued leave, for a bounded time."""
        self._context.destroy(linger=LINGER_MS)


def main(directory: Path) -> int:
    """Run a core; the exit code."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    tether = _adopt_stdin()
    config = msgspec.msgpack.decode(_read_document(tether), type=EngineConfig)
    log.configure(config.server.log_level)
    compilers = Compilers(config, close=(tether.fileno(),))  # before there is a thread
    threading.Thread(target=_die_with_front, args=(tether, directory), daemon=True, name="tether").start()
    link = Link(directory)
    vocabulary = _read_vocabulary(config)
    try:
        core = boot(config, compilers.wait)
        journal = _journal(config, core.scheduler)
    except SetupError as error:
        link.send(wire.Failed(str(error)))
        link.close()
        return EXIT_SETUP
    link.send(core.ready)
    with journal:
        _serve(core, link, journal, vocabulary)
    link.close()
    return 0


def _read_vocabulary(config: EngineConfig) -> Future[Vocabulary]:
    """Begin to read the vocabulary that grammars are compiled over, beside the weights; it takes a second."""

    def read() -> Vocabulary:
        name = config.model.tokenizer
        return Vocabulary.load(
            source.locate(config.model.model) if name is None else source.locate_tokenizer(name)
        )

    pool = ThreadPoolExecutor(1, thread_name_prefix="vocabulary")
    reading = pool.submit(read)
    pool.shutdown(wait=False)
    return reading


def _serve(core: Core, link: Link, journal: Journal, vocabulary: Future[Vocabulary]) -> None:
    gc.collect()
    gc.freeze()  # what boot made lives as long as the process; collections need not look at it
    constraints = Constraints(vocabulary, vocab=core.model.vocab, threads=facts.cores(), wake=link.wake)
    desk = Desk(core.scheduler, vocab_size=core.model.vocab, constraints=constraints)
    loop = Loop(
        desk, core.executor, link, link, MonotonicClock(), overlap=core.resolved.overlap, journal=journal
    )
    try:
        loop.run()
        core.executor.close()
    except BaseException:
        dump(core, loop.timeline)
        raise


def _journal(config: EngineConfig, scheduler: Scheduler) -> Journal:
    """Where the scheduler's journal goes: the file of `--event-log`, or nowhere."""
    if config.scheduler.event_log is None:
        return NO_JOURNAL
    path = Path(config.scheduler.event_log).expanduser()
    try:
        return JournalFile(path, scheduler, bytes_max=config.scheduler.event_log_bytes)
    except OSError as error:
        raise SetupError(f"--event-log {path}: {error.strerror}") from error


def dump(core: Core, timeline: Timeline) -> None:
    """Leave what is needed to find out why a loop failed: its last steps, and the scheduler's event log."""
    for record in list(timeline.recent)[-STEPS_DUMPED:]:
        _log.error("%s", record)
    directory = Path(env.get("TOKENSPEED_CACHE_DIR") or "~/.cache/tokenspeed").expanduser()
    path = directory / f"failed-{os.getpid()}.events"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.write_bytes(core.scheduler.log())
        _log.error("the loop failed; the scheduler's event log is %s", path)
    except OSError as error:
        _log.error("the loop failed; its event log cannot be written: %s", error)


def _adopt_stdin() -> socket.socket:
    """Take the tether off descriptor 0, so that no child inherits it and nothing reads it by mistake."""
    tether = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return tether


def _read_document(tether: socket.socket) -> bytes:
    (length,) = launch.CONFIG_LENGTH.unpack(_read(tether, launch.CONFIG_LENGTH.size))
    return _read(tether, length)


def _read(tether: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = tether.recv(length - len(data))
        if not part:
            raise SystemExit("the front ended before it sent the configuration")
        data += part
    return data


def _die_with_front(tether: socket.socket, directory: Path) -> None:
    """Wait on the tether's end-of-file, then end the process whatever the loop is doing."""
    while tether.recv(4096):
        pass
    shutil.rmtree(directory, ignore_errors=True)  # a front that was killed could not
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
