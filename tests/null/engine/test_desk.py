# SPDX-License-Identifier: MIT
"""The desk on a real scheduler: every accepted request gets one closing message, others are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenspeed.base.sampling import SamplingParams, TokenLogprob
from tokenspeed.control import Scheduler, SchedulerOptions
from tokenspeed.engine import wire
from tokenspeed.engine.desk import Desk
from tokenspeed.exec.protocol import StepResult
from tokenspeed.obs.timeline import Timeline

VOCAB = 100


def _desk(**changes: Any) -> tuple[Desk, Scheduler]:
    options: dict[str, Any] = {
        "blocks_total": 32,
        "block_tokens": 4,
        "slots_max": 4,
        "tokens_per_step_max": 64,
        "rows_per_step_max": 4,
        "prefill_tokens_max": 32,
        "waiting_max": 4,
        "context_tokens_max": 64,
        "hash_key": bytes(16),
    }
    scheduler = Scheduler(SchedulerOptions(**{**options, **changes}))
    return Desk(scheduler, vocab_size=VOCAB), scheduler


def _generate(request_id: int, ids: list[int], **sampling: Any) -> wire.Generate:
    chosen = SamplingParams(**{"tokens_max": 3, "seed": 0, **sampling})
    return wire.Generate(request_id, wire.ids_bytes(np.array(ids)), chosen, arrival_us=100)


def _step(desk: Desk, tokens: list[int], logprobs: Any = None) -> list[wire.Delta]:
    plan = desk.plan(1_000)
    assert plan is not None
    return desk.commit(plan, StepResult(plan.step, np.array(tokens, dtype=np.int32), logprobs)).items


def test_a_request_runs_to_its_length() -> None:
    desk, scheduler = _desk()
    desk.accept(_generate(1, [5, 6, 7]), 200)
    first, second, last = (_step(desk, [token])[0] for token in (11, 12, 13))
    assert (first.ids, first.finish, first.cached_tokens, first.queue_us) == (b"\x0b\0\0\0", None, 0, 900)
    assert (second.cached_tokens, second.queue_us) == (None, None)
    assert (last.ids, last.finish) == (b"\x0d\0\0\0", "length")
    assert scheduler.idle
    scheduler.check()


def test_a_stop_id_ends_the_request_and_is_reported() -> None:
    desk, _ = _desk()
    desk.accept(_generate(1, [5], stop_ids=(9,)), 200)
    (delta,) = _step(desk, [9])
    assert (delta.ids, delta.finish) == (b"\x09\0\0\0", "stop")


def test_logprobs_reach_their_own_request() -> None:
    desk, _ = _desk()
    desk.accept(_generate(1, [5], logprobs=0), 200)
    desk.accept(_generate(2, [6]), 200)
    entry = TokenLogprob(11, -0.5, [], 1)
    deltas = {delta.request_id: delta for delta in _step(desk, [11, 12], [entry, None])}
    assert deltas[1].logprobs == [entry]
    assert deltas[2].logprobs is None


def test_an_abort_closes_the_request_at_once_and_only_once() -> None:
    desk, scheduler = _desk()
    desk.accept(_generate(1, [5]), 200)
    desk.accept(wire.Abort([1]), 300)
    desk.accept(wire.Abort([1, 77]), 300)
    closings = [item for note in desk.take_notes() if isinstance(note, wire.Deltas) for item in note.items]
    assert [(delta.request_id, delta.finish) for delta in closings] == [(1, "cancelled")]
    assert desk.take_notes() == []
    assert scheduler.idle


def test_the_token_of_a_request_aborted_in_flight_goes_nowhere() -> None:
    desk, scheduler = _desk()
    desk.accept(_generate(1, [5]), 200)
    plan = desk.plan(1_000)
    assert plan is not None
    desk.accept(wire.Abort([1]), 1_100)
    assert desk.commit(plan, StepResult(plan.step, np.array([11], dtype=np.int32))).items == []
    assert scheduler.stats().blocks_free + scheduler.stats().blocks_evictable == 32


def test_a_row_that_fails_midway_ends_its_request_alone_and_leaves_no_prefix() -> None:
    desk, scheduler = _desk(prefill_tokens_max=8)
    desk.accept(_generate(1, list(range(10, 30))), 200)
    plan = desk.plan(1_000)
    assert plan is not None
    assert not plan.sampled.any()
    none = np.zeros(0, dtype=np.int32)
    (delta,) = desk.commit(plan, StepResult(plan.step, none, faults=(0,))).items
    assert (delta.finish, delta.ids) == ("error", b"")
    assert delta.error is not None
    assert scheduler.idle
    assert scheduler.stats().blocks_free == 32
    assert desk.sample(Timeline()).faults == 1


def test_a_failed_row_ends_its_request_alone_and_leaves_no_prefix() -> None:
    desk, scheduler = _desk()
    desk.accept(_generate(1, list(range(10, 22))), 200)
    desk.accept(_generate(2, list(range(40, 52))), 200)
    deltas = {delta.request_id: delta for delta in _step(desk, [-1, 12])}
    assert deltas[1].finish == "error"
    assert deltas[1].error is not None
    assert deltas[2].finish is None
    desk.accept(_generate(3, list(range(10, 22))), 2_000)
    deltas = {delta.request_id: delta for delta in _step(desk, [13, 14])}
    assert deltas[3].cached_tokens == 0
    assert desk.sample(Timeline()).faults == 1
    scheduler.check()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (_generate(1, []), "invalid"),
        (_generate(1, [VOCAB]), "invalid"),
        (_generate(1, [-1]), "invalid"),
        (_generate(1, [1] * 64), "invalid"),
        (_generate(1, [1] * 60, tokens_max=10), "too_long"),
        (_generate(1, [1], top_p=-1.0), "invalid"),
        (_generate(1, [1], stop_ids=(2**40,)), "invalid"),
        (_generate(1, [1], tokens_max=0), "empty"),
        (wire.Generate(1, b"\0\0\0", SamplingParams(tokens_max=1)), "invalid"),
    ],
)
def test_what_cannot_be_served_is_refused(message: wire.Generate, reason: str) -> None:
    desk, scheduler = _desk()
    desk.accept(message, 200)
    assert desk.take_notes() == [wire.Refused(1, reason)]  # type: ignore[arg-type]
    assert scheduler.idle


def test_a_full_queue_refuses_and_keeps_what_it_has() -> None:
    desk, _ = _desk(waiting_max=2)
    for request_id in (1, 2, 3):
        desk.accept(_generate(request_id, [5]), 200)
    (refused,) = desk.take_notes()
    assert isinstance(refused, wire.Refused)
    assert (refused.request_id, refused.reason) == (3, "queue_full")
    assert refused.retry_after_us > 0
    assert {delta.request_id for delta in _step(desk, [11, 12])} == {1, 2}


def test_stop_stops() -> None:
    desk, _ = _desk()
    desk.accept(wire.Stop(), 0)
    assert desk.stopped
