# SPDX-License-Identifier: MIT
"""Step durations: buckets are inclusive, overlapping steps are not counted twice, memory is bounded."""

from __future__ import annotations

from tokenspeed.obs.timeline import STEP_BUCKETS_US, STEPS_KEPT, StepRecord, Timeline


def _step(step: int, planned_us: int, launched_us: int, retired_us: int) -> StepRecord:
    return StepRecord(step, planned_us, launched_us, retired_us, 1, 1, (0, 0, 0, 0))


def test_a_step_falls_into_the_bucket_that_bounds_it() -> None:
    timeline = Timeline()
    timeline.add(_step(1, 0, 10, STEP_BUCKETS_US[0]))
    timeline.add(_step(2, 10_000_000, 10_000_010, 10_000_000 + STEP_BUCKETS_US[0] + 1))
    timeline.add(_step(3, 20_000_000, 20_000_010, 30_000_000))
    assert timeline.step_us_counts[0] == 1
    assert timeline.step_us_counts[1] == 1
    assert timeline.step_us_counts[-1] == 1
    assert sum(timeline.step_us_counts) == 3


def test_overlapping_steps_share_no_time() -> None:
    timeline = Timeline()
    timeline.add(_step(1, 0, 10, 1_000))
    timeline.add(_step(2, 500, 510, 2_000))
    assert timeline.step_us_sum == 2_000


def test_the_record_is_bounded() -> None:
    timeline = Timeline()
    for step in range(STEPS_KEPT + 5):
        timeline.add(_step(step, step, step, step))
    assert len(timeline.recent) == STEPS_KEPT
    assert timeline.recent[0].step == 5


def test_phases_are_summed_apart() -> None:
    timeline = Timeline()
    for step in range(3):
        timeline.add(StepRecord(step, 0, 3, 10, 1, 1, (1, 2, 3, 4)))
    assert timeline.phase_us_sums == [3, 6, 9, 12]
