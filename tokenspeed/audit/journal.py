# SPDX-License-Identifier: MIT
"""The journal as the auditor reads it: steps with their rows, and the life of each request.

In: bytes as docs/reference/event-log.md describes them. Out: a `History`. Keeps what floors need and skips the
rest; a record cut off at the end is dropped. Written from the document, not from the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

SUBMIT: Final = 1
PLAN: Final = 3
BIND: Final = 4
RETRACT: Final = 5
FINISH: Final = 6
COMMIT: Final = 7
TERMS: Final = 10
OPTIONS: Final = 64
ROWS: Final = 66
RESULTS: Final = 67
HEADER_BYTES: Final = 20
FAILED: Final = 1


@dataclass(slots=True)
class Step:
    """A launched step: what it had to do, when it was planned and when its result was there."""

    number: int
    planned_us: int
    rows: dict[
        int, bool
    ]  # request -> yields a token; the same object as the step's before where nothing changed
    decode_rows: int
    context_tokens: int
    prefill_tokens: int
    prefill_pairs: int
    bindings: dict[int, int] = field(default_factory=dict)
    committed_us: int = 0
    step_us: int = 0


@dataclass(slots=True)
class Request:
    """One request: its floor, its tokens' moments, and the times it was sent back to wait."""

    request_id: int
    floor_mtps: int
    submitted_us: int
    tokens_us: list[int] = field(default_factory=list)
    away_us: list[tuple[int, int]] = field(default_factory=list)  # from a retraction to the next token
    gone_us: int | None = None  # retracted, and no token since
    binding: int = 0  # counts its admissions; 0: waiting
    bindings: int = 0


@dataclass(slots=True)
class History:
    """What a journal says. `steps` are those that were committed, in that order."""

    options: dict[str, str] = field(default_factory=dict)
    lost: int = 0  # records before the first
    steps: list[Step] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)  # in the order they came; an id may come again


def read(data: bytes) -> History:
    """Read a journal; ValueError where it is none, or none that says which rows ran."""
    if data[:4] != b"TSL2":
        raise ValueError("no event log: it does not begin with TSL2")
    history = History(lost=int.from_bytes(data[12:20], "little"))
    reader = _Reader(history)
    at = HEADER_BYTES
    while at < len(data):
        kind = data[at]
        length, begin = _number(data, at + 1)
        at = begin + length
        if begin == 0 or at > len(data):
            break
        reader.record(kind, data[begin:at])
    if "blocks_total" not in history.options:
        raise ValueError("a ring of last events, which does not say what ran: audit a journal (--event-log)")
    return history


class _Reader:
    def __init__(self, history: History) -> None:
        self._history = history
        self._alive: dict[int, Request] = {}
        self._flying: dict[int, Step] = {}
        self._rows: dict[int, bool] = {}
        self._terms: dict[int, int] = {}
        self._retracted: list[Request] = []
        self._failed: set[int] = set()
        self._now_us = 0

    def record(self, kind: int, payload: bytes) -> None:
        if kind == OPTIONS:
            text = payload.decode()
            self._history.options = dict(line.split("=", 1) for line in text.splitlines())
            return
        if kind not in {SUBMIT, PLAN, BIND, RETRACT, FINISH, COMMIT, TERMS, ROWS}:
            return
        numbers = _numbers(payload)
        match kind:
            case 1:
                self._submit(numbers)
            case 3:
                self._plan(numbers)
            case 4 if request := self._alive.get(numbers[0]):
                request.bindings += 1
                request.binding = request.bindings
            case 5 if request := self._alive.get(numbers[0]):
                request.binding = 0
                self._retracted.append(request)
            case 6:
                self._alive.pop(numbers[0], None)
            case 7:
                self._commit(numbers)
            case 10:
                self._terms[numbers[0]] = numbers[4]
            case 66:
                self._rows = {r: bool(n % 2) for r, n in zip(numbers[1::2], numbers[2::2], strict=True)}
            case _:
                pass

    def _submit(self, numbers: list[int]) -> None:
        floor_mtps = self._terms.pop(numbers[0], 0) or int(self._history.options.get("floor_mtps", "0"))
        if numbers[3] == 0:
            request = Request(numbers[0], floor_mtps, numbers[5])
            self._alive[numbers[0]] = request
            self._history.requests.append(request)

    def _plan(self, numbers: list[int]) -> None:
        number, self._now_us, _, decode_rows, tokens, _, context, pairs = numbers
        step = Step(number, self._now_us, self._rows, decode_rows, context, tokens - decode_rows, pairs)
        step.bindings = {r: self._alive[r].binding for r in self._rows if r in self._alive}
        self._flying[number] = step
        for request in self._retracted:
            if request.tokens_us and request.gone_us is None:
                request.gone_us = self._now_us
        self._retracted.clear()

    def _commit(self, numbers: list[int]) -> None:
        number, _, _, now_us, step_us = numbers
        step = self._flying.pop(number, None)
        if step is None:
            return
        self._now_us = step.committed_us = now_us
        step.step_us = step_us
        self._history.steps.append(step)
        for request_id, sampled in step.rows.items():
            request = self._alive.get(request_id)
            if not sampled or request is None or request.binding != step.bindings.get(request_id):
                continue  # the answer is longer over, or this token was lost with a retraction
            request.tokens_us.append(now_us)
            if request.gone_us is not None:
                request.away_us.append((request.gone_us, now_us))
                request.gone_us = None


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A LEB128 number and where it ends; (0, 0) where the data end before."""
    value = shift = 0
    for place in range(at, min(at + 10, len(data))):
        value |= (data[place] & 127) << shift
        shift += 7
        if data[place] < 128:
            return value, place + 1
    return 0, 0


def _numbers(payload: bytes) -> list[int]:
    numbers: list[int] = []
    at = 0
    while at < len(payload):
        value, at = _number(payload, at)
        numbers.append(value)
    return numbers
