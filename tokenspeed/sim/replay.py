# SPDX-License-Identifier: MIT
"""Live through a journal again: the same events into a new scheduler, its decisions against the recorded ones.

In: a journal (`Scheduler.take_journal`, files of `--event-log`). Out: a `Replay`: equal, or the first record that
differs, both ways. The scheduler is the product's; prompts and results are made from the journal's numbers, such
that blocks are equal where the recorded ones were and a token ends a request where one did. So every decision can
be the same, and nothing of a text can be told. The journal is the script: what came in is fed in its order, what
was decided is compared record by record.

Also makes a failing journal small: `shrink` leaves out events while a predicate still holds. A shorter journal is
another run, so its recorded decisions count no more: then only inputs are fed (`feed`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tokenspeed.base.errors import SetupError
from tokenspeed.control import Event, EventLog, IdleClass, Plan, Scheduler, SchedulerOptions, read_log
from tokenspeed.control.log import header

STOP: Final = 2**31 - 1
FAILED: Final = -1
SAID_FAILED: Final = 1
SAID_STOP: Final = 2
SAID_FIRST: Final = 3
ACCEPTED: Final = 0
INPUTS: Final = frozenset(
    {"submit", "cancel", "plan", "no_plan", "commit", "late", "flush", "idle_session", "close_session"}
    | {"transferred", "corrupt"}
)
"""Records that stand for a call; a commit's results and a submit's prompt and terms come with them."""
SAID: Final = frozenset({"options", "terms", "prompt", "results"})
"""Records of what calls were given."""
WITHOUT_VALUES: Final = {"submit": ("digest",), "commit": ("digest",)}
"""Fields that speak of tokens, which a replay has not."""
PRELUDES: Final = frozenset({"terms", "rows"})
"""Records that come before the one of their call: at a torn end it may be missing."""
NOT_COMPARED: Final = frozenset({"options", "prompt", "results"})


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a replay first went another way: the number of the record, and what stood there and here."""

    place: int
    recorded: Event | None
    replayed: Event | None

    def __str__(self) -> str:
        return f"record {self.place}: recorded {_words(self.recorded)}, replayed {_words(self.replayed)}"


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of a replay."""

    events: int
    inputs: int
    steps: int
    difference: Difference | None


def read_journal(path: Path) -> EventLog:
    """A journal from its file, and the part before it (`FILE.1`) where there is one."""
    parts = [each for each in (path.with_name(path.name + ".1"), path) if each.is_file()]
    if not parts:
        raise SetupError(f"{path}: no such file")
    try:
        logs = [read_log(part.read_bytes()) for part in parts]
    except ValueError as error:
        raise SetupError(f"{path}: {error}") from error
    if len(logs) == 2 and logs[0].dropped + _records(logs[0]) != logs[1].dropped:
        logs = logs[1:]  # of different runs, or something is missing between
    first, *later = logs
    # Each later file says the options again.
    return EventLog(
        first.seed, first.dropped, first.events + tuple(e for log in later for e in log.events[1:])
    )


def _records(log: EventLog) -> int:
    """How many records of its run a file holds: the options of a later file are not one more."""
    return len(log.events) - (log.dropped > 0)


def options_of(log: EventLog) -> SchedulerOptions:
    """The scheduler's options as a journal tells them."""
    text = next((event.text for event in log.events if event.kind == "options"), None)
    if text is None:
        raise SetupError("this log holds digests alone: only a journal (--event-log) can be replayed")
    values: dict[str, Any] = {}
    for line in text.splitlines():
        name, _, value = line.partition("=")
        values[name] = (
            tuple(float.fromhex(each) for each in value.split(",")) if name == "cost" else int(value)
        )
    for name in (
        "prefix_cache",
        "overlap",
        "floor",
        "session_admission",
        "fair_share",
        "retention",
        "tiers",
        "stamps",
    ):
        values[name] = bool(values[name])
    values["cost_exact"] = bool(values["cost_exact"])
    return SchedulerOptions(journal=True, **values)


def replay(log: EventLog) -> Replay:
    """Feed a journal to a new scheduler and compare what it decides; what a torn end lacks is no difference."""
    if log.dropped:
        raise SetupError(
            f"the journal lacks its first {log.dropped} records; a replay begins at the beginning"
        )
    options = options_of(log)
    scheduler = Scheduler(options)
    feeder = Feeder(scheduler, log.events, block_tokens=options.block_tokens)
    recorded = [event for event in log.events if event.kind not in NOT_COMPARED]
    inputs = sum(event.kind in INPUTS for event in log.events)
    place = steps = 0
    for number, event in enumerate(feeder.inputs(), 1):
        steps += event.kind == "plan"
        feeder.feed(event)
        for mine in _journal_of(scheduler, log.seed):
            if mine.kind in NOT_COMPARED:
                continue
            theirs = recorded[place] if place < len(recorded) else None
            place += 1
            if theirs is None and number == inputs:
                break
            if theirs is None or _bare(theirs) != _bare(mine):
                return Replay(len(log.events), number, steps, Difference(place, theirs, mine))
    left = next((event for event in recorded[place:] if event.kind not in PRELUDES), None)
    difference = None if left is None else Difference(place + 1, left, None)
    return Replay(len(log.events), inputs, steps, difference)


class Feeder:
    """Turns records of inputs into calls."""

    def __init__(self, scheduler: Scheduler, events: Sequence[Event], *, block_tokens: int) -> None:
        self._scheduler = scheduler
        self._block_tokens = block_tokens
        self._events = events
        self._terms: dict[int, dict[str, int]] = {}
        self._prompts: dict[int, deque[Event]] = {}
        self._results: dict[int, tuple[int, ...]] = {}
        self._flights: dict[int, tuple[int, int]] = {}  # recorded step -> the one it is here, and its samples
        for event in events:
            if event.kind == "prompt":
                self._prompts.setdefault(event.fields["request_id"], deque()).append(event)
            elif event.kind == "results":
                self._results[event.fields["step"]] = event.rest

    def inputs(self) -> Iterator[Event]:
        """The records that stand for calls, in order."""
        for event in self._events:
            if event.kind == "terms":
                self._terms[event.fields["request_id"]] = event.fields
            elif event.kind in INPUTS:
                yield event

    def feed(self, event: Event) -> Plan | None:
        """Make the call that a record stands for; the plan it yields, if any."""
        fields = event.fields
        match event.kind:
            case "submit":
                self._submit(fields)
            case "cancel":
                self._scheduler.cancel(fields["request_id"])
            case "plan" | "no_plan":
                plan = self._scheduler.plan(fields["now_us"])
                if plan is not None and "step" in fields:
                    self._flights[fields["step"]] = plan.step, plan.samples
                return plan
            case "commit":
                # In a journal that was made shorter, steps have other numbers and rows.
                step, samples = self._flights.pop(fields["step"], (fields["step"], fields["samples"]))
                tokens = self._tokens(fields["step"], samples)
                self._scheduler.commit(step, tokens, fields["now_us"], fields["step_us"])
            case "late":
                self._scheduler.commit(fields["step"], np.empty(0, np.int32))
            case "flush":
                self._scheduler.flush_prefix()
            case "transferred":
                first, count = fields["copy"], fields["copies"]
                copies = np.arange(first, first + count, dtype=np.uint64)
                self._scheduler.transferred(
                    copies, np.full(count, fields["result"], np.uint8), fields["now_us"]
                )
            case "corrupt":
                self._scheduler.corrupt(np.array([fields["block"]], np.int32), fields["now_us"])
            case "idle_session":
                self._scheduler.idle_session(
                    fields["session"],
                    IdleClass(fields["idle"]),
                    gap_key=fields["gap_key"],
                    now_us=fields["now_us"],
                )
            case _:
                self._scheduler.close_session(fields["session"], fields["now_us"])
        return None

    def _submit(self, fields: dict[str, int]) -> None:
        request_id = fields["request_id"]
        terms = dict(self._terms.pop(request_id, {"request_id": request_id}))
        del terms["request_id"]
        tokens = np.zeros(fields["prompt_tokens"], np.int32)
        salt = b""
        if fields["status"] == ACCEPTED and self._prompts.get(request_id):
            prompt = self._prompts[request_id].popleft()
            salt = prompt.fields["salt"].to_bytes(8, "little")
            ends = np.arange(1, len(prompt.rest) + 1) * self._block_tokens - 1
            tokens[ends] = prompt.rest
        self._scheduler.submit(
            request_id,
            tokens,
            tokens_max=fields["tokens_max"],
            tokens_min=fields["tokens_min"],
            stop_ids=np.full(fields["stop_ids"], STOP, np.int32),
            salt=salt,
            priority=fields["priority"],
            now_us=fields["now_us"],
            final=bool(terms.pop("final", 0)),
            **terms,
        )

    def _tokens(self, step: int, samples: int) -> NDArray[np.int32]:
        tokens = np.zeros(samples, np.int32)
        said = self._results.get(step, ())
        for place, what in zip(said[::2], said[1::2], strict=True):
            if place >= samples:
                break
            tokens[place] = {SAID_FAILED: FAILED, SAID_STOP: STOP}.get(what, what - SAID_FIRST)
        return tokens


def shrink(events: Sequence[Event], fails: Callable[[Sequence[Event]], bool]) -> list[Event]:
    """Leave out calls while the rest still fails: by halves, then steps with their commits, then one by one; what
    cannot be spared.

    Prompts, terms and results are no calls of their own: they stay, and count for nothing without theirs.
    """
    kept = [event for event in events if event.kind in INPUTS]
    said = [event for event in events if event.kind in SAID]
    order = {id(event): place for place, event in enumerate(events)}

    def failing(calls: Sequence[Event]) -> bool:
        return fails(sorted([*said, *calls], key=lambda event: order[id(event)]))

    size = max(1, len(kept) // 2)
    while True:
        at, spared = 0, False
        while at < len(kept):
            if failing(shorter := kept[:at] + kept[at + size :]):
                kept, spared = shorter, True
            else:
                at += size
        for step in {event.fields["step"] for event in kept if event.kind == "plan"}:
            if failing(shorter := [event for event in kept if event.fields.get("step") != step]):
                kept, spared = shorter, True
        if size == 1 and not spared:
            return kept
        size = max(1, size // 2)


def _journal_of(scheduler: Scheduler, seed: int) -> tuple[Event, ...]:
    """What a scheduler has written since the last call."""
    part, before = scheduler.take_journal()
    return read_log(header(seed, before) + part).events


def _bare(event: Event) -> tuple[str, dict[str, int], tuple[int, ...]]:
    hidden = WITHOUT_VALUES.get(event.kind, ())
    return event.kind, {k: v for k, v in event.fields.items() if k not in hidden}, event.rest


def _words(event: Event | None) -> str:
    if event is None:
        return "nothing"
    fields = " ".join(f"{name}={value}" for name, value in event.fields.items())
    return f"{event.kind} {fields}".strip() + (f" {list(event.rest)}" if event.rest else "")
