# SPDX-License-Identifier: MIT
"""The loop's own order: what overlaps, when it waits, what it reports. The simulator proves the rest."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

from tokenspeed.base.clock import FakeClock
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.control import Plan, Scheduler, SchedulerOptions
from tokenspeed.engine import wire
from tokenspeed.engine.desk import Desk
from tokenspeed.engine.loop import STATS_EVERY_US, Loop
from tokenspeed.exec.protocol import StepResult
from tokenspeed.sim.cost import StepCost
from tokenspeed.sim.executor import SimExecutor
from tokenspeed.sim.trace import Trace

STEP_US = 1_000
PROMPT_TOKENS = 3


class Watched(SimExecutor):
    """The simulator's executor, noting the order of calls."""

    def __init__(self, options: SchedulerOptions, clock: FakeClock, calls: list[str]) -> None:
        super().__init__(
            options,
            origin_of=lambda request_id: (b"", PROMPT_TOKENS),
            faulted=lambda request_id: None,
            clock=clock,
            cost=StepCost(STEP_US, 0.0, 0.0, 0.0),
            random=Random(0),
            fault_chance=0.0,
            trace=Trace(clock),
        )
        self._calls = calls

    def bind(self, slot: int, sampling: SamplingParams, prompt: np.ndarray, output: np.ndarray) -> None:
        self._calls.append("bind")
        super().bind(slot, sampling, prompt, output)

    def launch(self, plan: Plan) -> Any:
        self._calls.append(f"launch {plan.step}")
        return super().launch(plan)

    def retire(self, flight: Any) -> StepResult:
        self._calls.append(f"retire {flight.step}")
        return super().retire(flight)


class Ends:
    """Mailbox and outbox: messages by turn, and everything that was said."""

    def __init__(self, clock: FakeClock, *turns: list[wire.Request]) -> None:
        self.waits: list[bool] = []
        self.reports: list[wire.Report] = []
        self._clock = clock
        self._turns = list(turns)

    def drain(self, *, wait: bool) -> list[wire.Request]:
        self.waits.append(wait)
        if wait and not self._turns:
            self._clock.advance_us(STATS_EVERY_US)
        return self._turns.pop(0) if self._turns else []

    def send(self, report: wire.Report) -> None:
        self.reports.append(report)


def _generate(request_id: int, tokens_max: int) -> wire.Generate:
    return wire.Generate(
        request_id, wire.ids_bytes(np.arange(PROMPT_TOKENS)), SamplingParams(tokens_max=tokens_max, seed=0)
    )


def _loop(*turns: list[wire.Request], overlap: bool) -> tuple[Loop, Ends, list[str], FakeClock]:
    options = SchedulerOptions(
        blocks_total=32,
        block_tokens=4,
        slots_max=4,
        tokens_per_step_max=64,
        rows_per_step_max=4,
        prefill_tokens_max=32,
        waiting_max=4,
        context_tokens_max=64,
        overlap=overlap,
        hash_key=bytes(16),
    )
    clock, calls = FakeClock(), list[str]()
    ends = Ends(clock, *turns)
    desk = Desk(Scheduler(options), vocab_size=1 << 20)
    return Loop(desk, Watched(options, clock, calls), ends, ends, clock, overlap=overlap), ends, calls, clock


def test_without_overlap_a_step_is_read_before_the_next_is_launched() -> None:
    loop, _, calls, _ = _loop([_generate(1, 3)], overlap=False)
    for _ in range(4):
        loop.turn()
    assert calls == ["bind", "launch 1", "retire 1", "launch 2", "retire 2", "launch 3", "retire 3"]


def test_with_overlap_the_next_step_is_launched_before_a_step_is_read() -> None:
    loop, _, calls, _ = _loop([_generate(1, 3)], overlap=True)
    for _ in range(5):
        loop.turn()
    assert calls[:5] == ["bind", "launch 1", "launch 2", "retire 1", "launch 3"]
    assert calls.index("retire 2") > calls.index("launch 3")


@pytest.mark.parametrize("overlap", [False, True])
def test_it_waits_only_with_nothing_to_run_and_nothing_in_flight(overlap: bool) -> None:
    loop, ends, _, _ = _loop([], [_generate(1, 2)], overlap=overlap)
    for _ in range(7):
        loop.turn()
    said = [item for report in ends.reports if isinstance(report, wire.Deltas) for item in report.items]
    assert [delta.finish for delta in said] == [None, "length"]
    assert ends.waits[:2] == [True, True]
    busy = ends.waits[2 : ends.waits.index(True, 2)]
    assert busy
    assert ends.waits[2 + len(busy) :] == [True] * (5 - len(busy))


@pytest.mark.parametrize("overlap", [False, True])
def test_statistics_beat_also_when_idle(overlap: bool) -> None:
    loop, ends, _, clock = _loop(overlap=overlap)
    for _ in range(10):
        loop.turn()
    beats = [report for report in ends.reports if isinstance(report, wire.Stats)]
    assert len(beats) == clock.now_us() // STATS_EVERY_US == 10


def test_steps_are_recorded_with_their_size_and_duration() -> None:
    loop, _, _, _ = _loop([_generate(1, 2), _generate(2, 2)], overlap=False)
    loop.turn()
    loop.turn()
    assert [(record.rows, record.tokens) for record in loop.timeline.recent] == [(2, 6), (2, 2)]
    assert loop.timeline.step_us_sum == 2 * STEP_US


def test_stop_ends_the_run() -> None:
    loop, ends, _, _ = _loop([_generate(1, 50)], [wire.Stop()], overlap=True)
    loop.run()
    assert len(ends.waits) == 2
