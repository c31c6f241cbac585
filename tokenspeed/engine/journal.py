# SPDX-License-Identifier: MIT
"""The scheduler's journal on disk: `--event-log FILE`, bounded, in two files.

In: a scheduler that journals. Out: FILE, and FILE.1 with what came before it; together at most `bytes_max`, and a
little. Every file begins as a log does (docs/reference/event-log.md) and says the options again, so each can be
audited alone; only a journal that has its beginning can be replayed. Writes what has gathered every so many turns
and when it closes. A disk that fails ends the journal, never the engine.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Protocol

from tokenspeed.base.log import get_logger
from tokenspeed.control import Scheduler
from tokenspeed.control.log import header, text_record

_log = get_logger("engine")
TURNS_PER_WRITE: Final = 32


class Journal(Protocol):
    """Where a scheduler's journal is kept while the loop runs; closed at its end."""

    def keep(self) -> None:
        """Take what the scheduler has written; once a turn."""
        ...

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class NoJournal:
    """Keeps nothing, of a scheduler that writes no journal."""

    def keep(self) -> None:
        pass

    def __enter__(self) -> NoJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


NO_JOURNAL: Final = NoJournal()


class JournalFile:
    """The file of one scheduler's journal. Raises OSError if it cannot be made."""

    def __init__(self, path: Path, scheduler: Scheduler, *, bytes_max: int) -> None:
        self._path = path
        self._scheduler = scheduler
        self._part_bytes = bytes_max // 2
        self._turns = 0
        self._written = 0
        path.with_name(path.name + ".1").unlink(missing_ok=True)  # of a run before
        self._file: BinaryIO | None = self._begin(0)

    def __enter__(self) -> JournalFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.write()
        if self._file is not None:
            self._file.close()

    def keep(self) -> None:
        """Once a turn: write now and then."""
        self._turns += 1
        if self._turns == TURNS_PER_WRITE:
            self.write()

    def write(self) -> None:
        """Take what the scheduler has written since, and write it."""
        self._turns = 0
        part, before = self._scheduler.take_journal()
        if self._file is None or not part:
            return
        try:
            if self._written + len(part) > self._part_bytes and before > 0:
                self._file.close()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._file = self._begin(before)
            self._file.write(part)
            self._written += len(part)
        except OSError as error:
            _log.error("the event log %s ends here: %s", self._path, error)
            self._file = None

    def _begin(self, before: int) -> BinaryIO:
        # Unbuffered: what was written is there, whatever happens to the process.
        file = self._path.open("wb", buffering=0)
        options = self._scheduler.options
        begin = header(options.seed, before) + (text_record(options.text) if before else b"")
        file.write(begin)
        self._written = len(begin)
        return file
