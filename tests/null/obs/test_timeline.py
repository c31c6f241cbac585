# SPDX-License-Identifier: MIT
"""Step durations: buckets are inclusive, overlapping steps are not counted twice, memory is bounded."""

from __future__ import annotations

from tokenspeed.obs.timeline import STEP_BUCKETS_US, STEPS_KEPT, RequestRecord, StepRecord, Timeline


def test_a_step_falls_into_the_bucket_that_bounds_it() -> None:
    timeline = Timeline()
    timeline.add(StepRecord(1, 0, 10, STEP_BUCKETS_US[0], 1, 1))
    timeline.add(StepRecord(2, 10_000_000, 10_000_010, 10_000_000 + STEP_BUCKETS_US[0] + 1, 1, 1))
    timeline.add(StepRecord(3, 20_000_000, 20_000_010, 30_000_000, 1, 1))
    assert timeline.step_us_counts[0] == 1
    assert timeline.step_us_counts[1] == 1
    assert timeline.step_us_counts[-1] == 1
    assert sum(timeline.step_us_counts) == 3


def test_overlapping_steps_share_no_time() -> None:
    timeline = Timeline()
    timeline.add(StepRecord(1, 0, 10, 1_000, 1, 1))
    timeline.add(StepRecord(2, 500, 510, 2_000, 1, 1))
    assert timeline.step_us_sum == 2_000


def test_the_record_is_bounded() -> None:
    timeline = Timeline()
    for step in range(STEPS_KEPT + 5):
        timeline.add(StepRecord(step, step, step, step, 1, 1))
    assert len(timeline.recent) == STEPS_KEPT
    assert timeline.recent[0].step == 5


def test_a_request_record_is_one_line_of_numbers() -> None:
    record = RequestRecord(7, 1500, 20_000, 90_000, 100, 64, 12, "stop")
    assert str(record) == (
        "request 7: stop after 90.0 ms (queue 1.5, first token 20.0); 100 prompt tokens, 64 cached, 12 out"
    )
