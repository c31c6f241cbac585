# SPDX-License-Identifier: MIT
"""The scheduler's event log as values: what came in, what was decided, in order, by name.

In: the bytes of `Scheduler.log()` (format: csrc/sched/include/sched/event_log.h). Out: an `EventLog`. It
holds digests of prompts, plans and results, never tokens: two runs can be compared, and no text leaks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_MAGIC: Final = b"TSL1"
_HEADER: Final = struct.Struct("<4sQQ")
_FIELDS: Final = {
    1: ("submit", ("request_id", "prompt_tokens", "tokens_max", "status", "digest", "now_us")),
    2: ("cancel", ("request_id", "was_alive")),
    3: ("plan", ("step", "now_us", "rows", "decode_rows", "tokens", "digest")),
    4: ("bind", ("request_id", "slot", "cached_tokens")),
    5: ("retract", ("request_id",)),
    6: ("finish", ("request_id", "reason")),
    7: ("commit", ("step", "samples", "digest", "now_us", "step_us")),
    8: ("late", ("step",)),
    9: ("flush", ("blocks",)),
    10: (
        "terms",
        ("request_id", "session", "root", "tenant", "floor_mtps", "deadline_us", "retain_us", "final"),
    ),
    11: ("idle_session", ("session", "idle", "gap_key", "now_us")),
    12: ("close_session", ("session", "now_us")),
    13: ("decision", ("reason", "subject", "value")),
}


@dataclass(frozen=True, slots=True)
class Event:
    """One record: its kind, and its fields by name."""

    kind: str
    fields: dict[str, int]


@dataclass(frozen=True, slots=True)
class EventLog:
    """The last events of a run; `dropped` older ones have left the ring."""

    seed: int
    dropped: int
    events: tuple[Event, ...]


def read_log(log: bytes) -> EventLog:
    """Decode an event log; ValueError where it is not one."""
    if len(log) < _HEADER.size or not log.startswith(_MAGIC):
        raise ValueError("not an event log of the scheduler: it does not start with TSL1")
    _, seed, dropped = _HEADER.unpack_from(log)
    return EventLog(seed, dropped, tuple(_events(log, _HEADER.size)))


def _events(log: bytes, at: int) -> Iterator[Event]:
    while at < len(log):
        kind, length = log[at], log[at + 1]
        name, fields = _FIELDS[kind]
        yield Event(name, dict(zip(fields, _varints(log[at + 2 : at + 2 + length]), strict=True)))
        at += 2 + length


def _varints(payload: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in payload:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield value
            value = shift = 0
