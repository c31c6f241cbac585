# SPDX-License-Identifier: MIT
"""What many seeds add up to, and how it is printed.

In: `Run`s. Out: a `Tally` that can be merged across processes, and text. Does not run anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenspeed.sim.violation import LAWS
from tokenspeed.sim.workload import FEATURES
from tokenspeed.sim.world import Run


@dataclass(slots=True)
class Tally:
    """Counts over seeds, and the runs that failed."""

    seeds: int = 0
    features: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    seeds_reaching: Counter[str] = field(default_factory=Counter)
    failures: list[Run] = field(default_factory=list)

    def add(self, run: Run) -> None:
        """Enter one run."""
        self.seeds += 1
        self.features.update(run.features)
        self.reached.update(run.reached)
        self.seeds_reaching.update(name for name, count in run.reached.items() if count)
        if run.law is not None:
            self.failures.append(run)

    def merge(self, other: Tally) -> None:
        """Enter everything of another tally."""
        self.seeds += other.seeds
        self.features.update(other.features)
        self.reached.update(other.reached)
        self.seeds_reaching.update(other.seeds_reaching)
        self.failures.extend(other.failures)


def summary(tally: Tally) -> Iterator[str]:
    """The report of a run of many seeds, line by line."""
    steps = tally.reached["steps"]
    yield f"{tally.seeds} seeds, {len(tally.failures)} failed, {steps} steps"
    yield ""
    yield f"{'reached':<44}{'times':>12}{'seeds':>10}"
    for name in sorted(tally.reached):
        yield f"  {name:<42}{tally.reached[name]:>12}{tally.seeds_reaching[name]:>10}"
    yield ""
    yield f"{'switched on':<56}{'seeds':>10}"
    for name, meaning in FEATURES.items():
        yield f"  {name + ': ' + meaning:<54}{tally.features[name]:>10}"


def failure(run: Run, command: str) -> Iterator[str]:
    """A failed run: what broke, how to see it again, and what happened last."""
    assert run.law is not None
    yield f"seed {run.seed} failed: {run.message}"
    yield f"the law: {run.law}: {LAWS[run.law]}"
    yield f"switched on: {', '.join(sorted(run.features)) or 'nothing'}"
    yield f"again: {command}"
    yield "the last events:"
    for line in run.events:
        yield f"  {line}"
