# SPDX-License-Identifier: MIT
"""The scheduler's event log as values: what came in, what was decided, in order, by name.

In: the bytes of `Scheduler.log()` (the last events) or a journal (all of them, and what replay needs besides);
format: docs/reference/event-log.md. Out: an `EventLog`. It holds digests and keyed numbers of prompts and
results, never tokens: two runs can be compared, a journal replayed, and no text leaks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MAGIC: Final = b"TSL2"
_HEADER: Final = struct.Struct("<4sQQ")
_FIELDS: Final = {
    1: (
        "submit",
        (
            "request_id",
            "prompt_tokens",
            "tokens_max",
            "status",
            "digest",
            "now_us",
            "tokens_min",
            "priority",
            "stop_ids",
        ),
    ),
    2: ("cancel", ("request_id", "was_alive")),
    3: (
        "plan",
        ("step", "now_us", "rows", "decode_rows", "tokens", "digest", "context_tokens", "prefill_pairs"),
    ),
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
    14: ("no_plan", ("now_us",)),
    15: ("transferred", ("copy", "copies", "result", "now_us")),
    16: ("corrupt", ("block", "now_us")),
    17: ("adopt", ("tier", "offered", "placed", "digest")),
    64: ("options", ()),
    65: ("prompt", ("request_id", "salt")),
    66: ("rows", ("step",)),
    67: ("results", ("step",)),
}
_TEXT: Final = 64
_LISTS: Final = frozenset({65, 66, 67})
_SIGNED: Final = frozenset({"priority"})


@dataclass(frozen=True, slots=True)
class Event:
    """One record: its kind, its fields by name; `rest` are the numbers of a list behind them."""

    kind: str
    fields: dict[str, int]
    rest: tuple[int, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class EventLog:
    """Events of a run; `dropped` older ones are not among them."""

    seed: int
    dropped: int
    events: tuple[Event, ...]


def header(seed: int, dropped: int) -> bytes:
    """What a log begins with."""
    return _HEADER.pack(MAGIC, seed, dropped)


def text_record(text: str) -> bytes:
    """The record of a scheduler's options, as a journal's later files repeat it."""
    payload = text.encode()
    length = bytearray()
    left = len(payload)
    while left >= 0x80:
        length.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([_TEXT, *length, left]) + payload


def read_log(log: bytes) -> EventLog:
    """Decode an event log; ValueError where it is not one. A record that was cut off ends it."""
    if len(log) < _HEADER.size or not log.startswith(MAGIC):
        raise ValueError(f"not an event log of the scheduler: it does not start with {MAGIC.decode()}")
    _, seed, dropped = _HEADER.unpack_from(log)
    return EventLog(seed, dropped, tuple(_events(log, _HEADER.size)))


def _events(log: bytes, at: int) -> Iterator[Event]:
    while at < len(log):
        kind = log[at]
        length, begin = _varint(log, at + 1)
        payload = log[begin : begin + length]
        if begin == 0 or len(payload) < length:
            return
        at = begin + length
        if kind not in _FIELDS:
            raise ValueError(f"an event log of another version: record kind {kind}")
        name, fields = _FIELDS[kind]
        if kind == _TEXT:
            yield Event(name, {}, text=payload.decode())
            continue
        numbers = list(_varints(payload))
        rest = tuple(numbers[len(fields) :]) if kind in _LISTS else ()
        named = dict(zip(fields, numbers[: len(numbers) - len(rest)], strict=True))
        for signed in _SIGNED & named.keys():
            named[signed] = -(named[signed] + 1) // 2 if named[signed] % 2 else named[signed] // 2
        yield Event(name, named, rest)


def _varint(log: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends; (0, 0) where the log ends before."""
    value = shift = 0
    for place in range(at, len(log)):
        value |= (log[place] & 0x7F) << shift
        shift += 7
        if log[place] < 0x80:
            return value, place + 1
    return 0, 0


def _varints(payload: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in payload:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield value
            value = shift = 0
