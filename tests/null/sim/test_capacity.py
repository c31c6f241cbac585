# SPDX-License-Identifier: MIT
"""How many sessions: bisection over runs, and the promises that decide."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokenspeed.base.errors import SetupError
from tokenspeed.sim.bounds import Bounds
from tokenspeed.sim.capacity import Promise, most_sessions
from tokenspeed.sim.device import DEVICES
from tokenspeed.sim.measures import Measures
from tokenspeed.sim.study import Case, Result

GOOD = Measures(
    turns_per_hour=100.0,
    windows=1000,
    windows_violating=0,
    requests_violating=0,
    requests=100,
    tps_mean=50.0,
    tps_p10=45.0,
    ttft_p50_s=0.1,
    ttft_p95_s=1.0,
    door_p50_s=0.0,
    door_p95_s=2.0,
    wait_max_s=3.0,
    hit_share=0.9,
    hit_bound_share=0.95,
    recompute_share=0.05,
    recompute_work_share=0.3,
    jain=0.99,
    retractions=0,
    refusals=0,
    busy_share=1.0,
    sessions_ended=10,
    turns_per_hour_of_lane={0: 12.5},
    copies=0,
)
PROMISE = Promise(violating_max=0.001, ttft_p95_max_s=15.0, door_p95_max_s=30.0)


def result(measures: Measures, sessions: int = 1) -> Result:
    return Result(Case(sessions, 40, 1.0), 1, 1, 0, measures, Bounds(1, 1, 1), 1, 1.0, 1.0)


@pytest.mark.parametrize("holds", [1, 7, 8, 9, 31, 100])
def test_bisection_finds_the_last_number_that_passes(holds: int) -> None:
    tried: list[int] = []

    def play(count: int) -> Result:
        tried.append(count)
        return result(GOOD if count <= holds else replace(GOOD, ttft_p95_s=20.0), count)

    best, found, beyond = most_sessions(play, PROMISE, most=256)
    assert best == holds
    assert found is not None
    assert found.case.sessions == holds
    assert beyond == "TTFT p95 20.0 s"
    assert len(tried) == len(set(tried)) < 14


def test_all_or_none_pass() -> None:
    assert most_sessions(lambda n: result(GOOD, n), PROMISE, most=20)[::2] == (20, None)
    best, found, beyond = most_sessions(
        lambda n: result(replace(GOOD, windows_violating=2), n), PROMISE, most=20
    )
    assert (best, found, beyond) == (0, None, "0.20% of windows below the floor")


def test_a_promise_names_what_broke_first() -> None:
    assert PROMISE.broken(result(GOOD)) is None
    assert PROMISE.broken(result(replace(GOOD, door_p95_s=31.0))) == "sessions wait 31 s at the door (p95)"


def test_a_mesh_divides_work_and_weights_but_no_latent() -> None:
    one = DEVICES["moonlight", "h200"]
    two = one.on_mesh("tp2")
    assert two.token_us == one.token_us / 2
    assert two.context_us == one.context_us
    assert two.kv_bytes == one.kv_bytes + one.weight_bytes // 2
    assert one.on_mesh("tp1") is one
    with pytest.raises(SetupError, match="tp1, tp2, tp4 and tp8"):
        one.on_mesh("dp3")
