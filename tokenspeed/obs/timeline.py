# SPDX-License-Identifier: MIT
"""The recent past, step by step, and since the start the distribution of step durations and their split.

In: one record per retired step, from the loop. Out: counts per bucket and sums per phase (they travel in
`obs.sample`), and lines for a crash report. Does not talk to Prometheus and holds no token. A step costs one
tuple, one bisection and four additions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import Final, NamedTuple

STEP_BUCKETS_US: Final = (
    500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000,
)  # fmt: skip
"""Upper bounds, inclusive; one more bucket without bound follows."""
PHASES: Final = ("plan", "launch", "wait", "commit")
"""What the loop does with a step: plan it, launch it (on a CPU that runs it), wait for it, commit and report."""
STEPS_KEPT: Final = 1024


class StepRecord(NamedTuple):
    """One step. Times are of the host's monotonic clock."""

    step: int
    planned_us: int
    launched_us: int
    retired_us: int
    rows: int
    tokens: int
    phases_us: tuple[int, int, int, int]
    """The loop's time in each of `PHASES`; with overlap, other steps' phases lie between them."""


class Timeline:
    """A bounded record of steps."""

    def __init__(self) -> None:
        self.recent: deque[StepRecord] = deque(maxlen=STEPS_KEPT)
        self.step_us_sum = 0
        self.step_us_counts = [0] * (len(STEP_BUCKETS_US) + 1)
        self.phase_us_sums = [0] * len(PHASES)
        self._retired_us = 0

    def add(self, record: StepRecord) -> None:
        """Count a step for the time it alone had the device: steps overlap, their durations here do not."""
        duration_us = record.retired_us - max(record.planned_us, self._retired_us)
        self._retired_us = record.retired_us
        self.recent.append(record)
        self.step_us_sum += duration_us
        self.step_us_counts[bisect_left(STEP_BUCKETS_US, duration_us)] += 1
        for phase, phase_us in enumerate(record.phases_us):
            self.phase_us_sums[phase] += phase_us
