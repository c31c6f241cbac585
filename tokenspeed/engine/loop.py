# SPDX-License-Identifier: MIT
"""The loop: the same lines in production and in the simulator.

In: messages of the front, through a mailbox. Out: reports to the front, through an outbox. Carries every
request through the control plane (by `Desk`) and an executor. With overlap, step n+1 is launched before
step n is read; where masks decide its tokens its model is, and their choice follows once step n is
committed. Cannot reach torch, blocks only on an empty mailbox with nothing to run, and takes its clock as an
input.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple, Protocol

from tokenspeed.base.clock import Clock
from tokenspeed.control import Plan
from tokenspeed.engine import wire
from tokenspeed.engine.desk import Desk
from tokenspeed.engine.journal import NO_JOURNAL, Journal
from tokenspeed.exec.protocol import Executor
from tokenspeed.obs.timeline import StepRecord, Timeline

STATS_EVERY_US: Final = 250_000


class Mailbox(Protocol):
    """Where messages of the front arrive."""

    def drain(self, *, wait: bool) -> Iterable[wire.Request]:
        """All messages that are here; with `wait`, block for the first, but no longer than
        `STATS_EVERY_US`.
        """
        ...


class Outbox(Protocol):
    """Where reports to the front leave; never blocks."""

    def send(self, report: wire.Report) -> None: ...


class _Running(NamedTuple):
    """A launched step."""

    plan: Plan
    flight: Any
    planned_us: int
    plan_us: int
    launched_us: int
    held: bool
    """`flight` is not chosen yet."""


class Loop:
    """One core's loop. `run` returns after `wire.Stop`; `turn` is one pass, for those who drive it."""

    def __init__(
        self,
        desk: Desk,
        executor: Executor,
        mailbox: Mailbox,
        outbox: Outbox,
        clock: Clock,
        *,
        overlap: bool,
        journal: Journal = NO_JOURNAL,
    ) -> None:
        self.timeline = Timeline()
        self._desk = desk
        self._executor = executor
        self._mailbox = mailbox
        self._outbox = outbox
        self._clock = clock
        self._overlap = overlap
        self._journal = journal
        self._running: _Running | None = None
        self._quiet = True  # the last plan was None, and nothing has happened since that could change it
        self._stats_us = 0
        self._copies = 0  # asked for and not reported

    def run(self) -> None:
        while not self._desk.stopped:
            self.turn()

    @property
    def busy(self) -> bool:
        """A step is in flight, or a copy between tiers."""
        return self._running is not None or self._copies > 0

    def turn(self) -> None:
        idle = self._quiet and self._running is None
        moved = self._hear_copies(wait=idle)
        self._hear(wait=idle and not moved)
        launched = self._launch()
        if self._running is not None:
            self._retire(self._running)
        if launched is not None and launched.held:
            launched = self._choose(launched)
        if launched is not None and not self._overlap:
            self._retire(launched)
            launched = None
        self._running = launched
        self._report_stats()
        self._journal.keep()

    def _hear_copies(self, *, wait: bool) -> bool:
        """Take reports of copies between tiers; true where copies are under way, or have just ended."""
        if self._copies == 0:
            return False
        if (reports := self._executor.reports(wait=wait)) is not None:
            self._copies -= len(reports.copy_ids)
            self._desk.transferred(reports, self._clock.now_us())
            self._quiet = False
        return True

    def _hear(self, *, wait: bool) -> None:
        for message in self._mailbox.drain(wait=wait):
            self._desk.accept(message, self._clock.now_us())
            self._quiet = False
        if self._desk.admit(self._clock.now_us()):
            self._quiet = False
        for report in self._desk.take_notes():
            self._outbox.send(report)

    def _launch(self) -> _Running | None:
        planned_us = self._clock.now_us()
        plan = self._desk.plan(planned_us)
        self._quiet = plan is None
        if plan is None:
            return None
        plan_us = self._clock.now_us() - planned_us
        self._copies += len(plan.copy_ids)
        for slot, sampling, prompt, output in self._desk.bindings(plan):
            self._executor.bind(slot, sampling, prompt, output)
        held = self._desk.holds(plan)
        flight = self._executor.hold(plan) if held else self._executor.launch(plan)
        return _Running(plan, flight, planned_us, plan_us, self._clock.now_us(), held)

    def _choose(self, running: _Running) -> _Running:
        """Give a step that was held its masks. Its model runs meanwhile, on a device that is not this CPU."""
        began_us = self._clock.now_us()
        flight = self._executor.choose(running.flight, self._desk.masks(running.plan))
        # What this took is part of the launch, for those who read the phases of a step.
        launched_us = running.launched_us + self._clock.now_us() - began_us
        return running._replace(flight=flight, launched_us=launched_us, held=False)

    def _retire(self, running: _Running) -> None:
        waiting_us = self._clock.now_us()
        result = self._executor.retire(running.flight)
        read_us = self._clock.now_us()
        self._outbox.send(self._desk.commit(running.plan, result, read_us))
        self._quiet = False
        plan = running.plan
        retired_us = self._clock.now_us()
        phases_us = (
            running.plan_us,
            running.launched_us - running.planned_us - running.plan_us,
            read_us - waiting_us,
            retired_us - read_us,
        )
        self.timeline.add(
            StepRecord(
                plan.step,
                running.planned_us,
                running.launched_us,
                retired_us,
                plan.rows,
                len(plan.tokens),
                phases_us,
            )
        )

    def _report_stats(self) -> None:
        now_us = self._clock.now_us()
        if now_us - self._stats_us >= STATS_EVERY_US:
            self._stats_us = now_us
            self._outbox.send(wire.Stats(now_us, self._desk.sample(self.timeline)))
