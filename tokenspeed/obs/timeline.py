# SPDX-License-Identifier: MIT
"""The recent past, step by step and request by request, and the distribution of step durations since start.

In: one record per retired step, from the loop; one per ended request, from the front. Out: counts per bucket
(they travel in `obs.sample`), and lines for a crash report or a debug log. Does not talk to Prometheus and
holds no token. A step costs one tuple and one bisection.
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
STEPS_KEPT: Final = 1024


class StepRecord(NamedTuple):
    """One step. Times are of the host's monotonic clock."""

    step: int
    planned_us: int
    launched_us: int
    retired_us: int
    rows: int
    tokens: int


class RequestRecord(NamedTuple):
    """One ended request. Durations count from its arrival; -1 where it did not get so far."""

    request_id: int
    queue_us: int
    first_token_us: int
    end_us: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    reason: str

    def __str__(self) -> str:
        return (
            f"request {self.request_id}: {self.reason} after {self.end_us / 1000:.1f} ms "
            f"(queue {self.queue_us / 1000:.1f}, first token {self.first_token_us / 1000:.1f}); "
            f"{self.prompt_tokens} prompt tokens, {self.cached_tokens} cached, {self.output_tokens} out"
        )


class Timeline:
    """A bounded record of steps."""

    def __init__(self) -> None:
        self.recent: deque[StepRecord] = deque(maxlen=STEPS_KEPT)
        self.step_us_sum = 0
        self.step_us_counts = [0] * (len(STEP_BUCKETS_US) + 1)
        self._retired_us = 0

    def add(self, record: StepRecord) -> None:
        """Count a step for the time it alone had the device: steps overlap, their durations here do not."""
        duration_us = record.retired_us - max(record.planned_us, self._retired_us)
        self._retired_us = record.retired_us
        self.recent.append(record)
        self.step_us_sum += duration_us
        self.step_us_counts[bisect_left(STEP_BUCKETS_US, duration_us)] += 1
