# SPDX-License-Identifier: MIT
"""The binding: types, views, lifetimes and values. What the scheduler decides is tested in tests/cpp."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenspeed.control import Finish, InvariantError, Plan, Scheduler, SchedulerOptions, SubmitStatus

NO_STOPS = np.empty(0, np.int32)
PLAN_TYPES = {
    "request_ids": np.uint64,
    "slots": np.int32,
    "starts": np.int32,
    "lengths": np.int32,
    "sampled": np.uint8,
    "tokens": np.int32,
    "table_slots": np.int32,
    "table_indexes": np.int32,
    "table_blocks": np.int32,
    "bound_slots": np.int32,
    "bound_request_ids": np.uint64,
    "cached_tokens": np.int32,
    "group_rows": np.int32,
    "group_sizes": np.int32,
    "group_blocks": np.int32,
}


def options(**changes: Any) -> SchedulerOptions:
    values: dict[str, Any] = {
        "blocks_total": 64,
        "block_tokens": 4,
        "slots_max": 4,
        "tokens_per_step_max": 32,
        "rows_per_step_max": 4,
        "prefill_tokens_max": 32,
        "waiting_max": 4,
        "context_tokens_max": 128,
    }
    return SchedulerOptions(**(values | changes))


def prompt(tokens: int) -> NDArray[np.int32]:
    return np.arange(tokens, dtype=np.int32)


def submit(
    scheduler: Scheduler, request_id: int, tokens: int = 10, tokens_max: int = 4, **rest: Any
) -> SubmitStatus:
    rest = {"stop_ids": NO_STOPS, "now_us": 0} | rest
    return scheduler.submit(request_id, prompt(tokens), tokens_max=tokens_max, **rest)


def expect_plan(scheduler: Scheduler) -> Plan:
    plan = scheduler.plan(0)
    assert plan is not None
    return plan


def test_a_plan_is_typed_arrays() -> None:
    scheduler = Scheduler(options())
    assert submit(scheduler, 7) == SubmitStatus.ACCEPTED
    plan = expect_plan(scheduler)
    assert (plan.step, plan.rows, plan.decode_rows, plan.samples) == (1, 1, 0, 1)
    for name, dtype in PLAN_TYPES.items():
        array = getattr(plan, name)
        assert array.dtype == dtype, name
        assert array.ndim == 1, name
    assert plan.request_ids.tolist() == [7]
    assert plan.tokens.tolist() == list(range(10))
    assert plan.table_indexes.tolist() == [0, 1, 2]
    assert plan.bound_request_ids.tolist() == [7]
    assert plan.cached_tokens.tolist() == [0]


def test_accessors_are_views_of_the_same_memory() -> None:
    scheduler = Scheduler(options())
    submit(scheduler, 7)
    plan = expect_plan(scheduler)
    assert np.shares_memory(plan.tokens, plan.tokens)
    assert plan.tokens.base is not None


def test_a_request_runs_to_its_length() -> None:
    scheduler = Scheduler(options())
    submit(scheduler, 7, tokens_max=3)
    emitted: list[int] = []
    finishes: list[int] = []
    while (plan := scheduler.plan(0)) is not None:
        outcome = scheduler.commit(plan.step, np.full(plan.samples, 100 + plan.step, np.int32))
        emitted += outcome.tokens.tolist()
        finishes += outcome.finish.tolist()
        scheduler.check()
    assert emitted == [101, 102, 103]
    assert finishes == [Finish.NONE, Finish.NONE, Finish.LENGTH]
    assert scheduler.idle


def test_a_stop_id_ends_a_request_and_is_reported() -> None:
    scheduler = Scheduler(options())
    submit(scheduler, 7, stop_ids=np.array([42], np.int32))
    plan = expect_plan(scheduler)
    outcome = scheduler.commit(plan.step, np.array([42], np.int32))
    assert (outcome.tokens.tolist(), outcome.finish.tolist()) == ([42], [Finish.STOP])


def test_a_negative_token_ends_its_row_in_error_only() -> None:
    scheduler = Scheduler(options())
    submit(scheduler, 1)
    submit(scheduler, 2)
    plan = expect_plan(scheduler)
    outcome = scheduler.commit(plan.step, np.array([-1, 5], np.int32))
    assert outcome.finish.tolist() == [Finish.ERROR, Finish.NONE]
    assert scheduler.stats().running == 1


def test_submit_answers_with_values() -> None:
    scheduler = Scheduler(options(blocks_total=16, waiting_max=1))
    assert submit(scheduler, 1, tokens=0) == SubmitStatus.EMPTY
    assert submit(scheduler, 1, tokens=128) == SubmitStatus.TOO_LONG
    assert submit(scheduler, 1, tokens=100) == SubmitStatus.EXCEEDS_POOL
    assert submit(scheduler, 1) == SubmitStatus.ACCEPTED
    assert submit(scheduler, 1) == SubmitStatus.DUPLICATE
    assert submit(scheduler, 2) == SubmitStatus.QUEUE_FULL


def test_the_prompt_is_copied() -> None:
    scheduler = Scheduler(options())
    mine = prompt(8)
    scheduler.submit(1, mine, tokens_max=2, stop_ids=NO_STOPS, now_us=0)
    mine[:] = 99
    assert scheduler.tokens(1).tolist() == list(range(8))
    assert scheduler.tokens(2).size == 0


def test_a_salt_separates_tenants() -> None:
    scheduler = Scheduler(options())
    for request_id, salt in ((1, b"a"), (2, b"b"), (3, b"a")):
        submit(scheduler, request_id, tokens_max=1, salt=salt)
        plan = expect_plan(scheduler)
        assert plan.cached_tokens.tolist() == [8 if request_id == 3 else 0]
        scheduler.commit(plan.step, np.zeros(1, np.int32))
    assert scheduler.stats().tokens_hit == 8


def test_late_and_duplicated_results_are_harmless() -> None:
    scheduler = Scheduler(options())
    submit(scheduler, 1)
    plan = expect_plan(scheduler)
    result = np.array([5], np.int32)
    assert scheduler.commit(99, result).request_ids.size == 0
    assert scheduler.commit(plan.step, result).request_ids.size == 1
    assert scheduler.commit(plan.step, result).request_ids.size == 0
    assert scheduler.tokens(1).tolist() == [*range(10), 5]


def test_a_result_of_the_wrong_size_is_a_value_error() -> None:
    scheduler = Scheduler(options())
    submit(scheduler, 1)
    plan = expect_plan(scheduler)
    with pytest.raises(ValueError, match="one token per sampled row"):
        scheduler.commit(plan.step, np.zeros(2, np.int32))
    assert scheduler.commit(plan.step, np.zeros(1, np.int32)).request_ids.size == 1


def test_a_cancel_is_reported_by_drain_or_the_next_commit() -> None:
    scheduler = Scheduler(options())
    submit(scheduler, 1)
    assert scheduler.cancel(1)
    assert not scheduler.cancel(1)
    outcome = scheduler.drain()
    assert (outcome.request_ids.tolist(), outcome.finish.tolist()) == ([1], [Finish.CANCELLED])
    assert scheduler.drain().request_ids.size == 0
    submit(scheduler, 2)
    plan = expect_plan(scheduler)
    scheduler.cancel(2)
    assert scheduler.stats().blocks_in_flight == 3
    outcome = scheduler.commit(plan.step, np.zeros(1, np.int32))
    assert (outcome.request_ids.tolist(), outcome.tokens.tolist()) == ([2], [-1])
    assert scheduler.stats().blocks_free == 64


def test_an_outcome_keeps_its_values() -> None:
    scheduler = Scheduler(options())
    submit(scheduler, 1)
    outcomes = []
    while (plan := scheduler.plan(0)) is not None:
        outcomes.append(scheduler.commit(plan.step, np.array([plan.step], np.int32)))
    assert [outcome.tokens.tolist() for outcome in outcomes] == [[1], [2], [3], [4]]


def test_a_plan_is_readable_until_its_buffer_is_used_again() -> None:
    scheduler = Scheduler(options(overlap=True))
    submit(scheduler, 1, tokens_max=20)
    first = expect_plan(scheduler)
    second = expect_plan(scheduler)
    assert scheduler.plan(0) is None
    scheduler.commit(first.step, np.zeros(1, np.int32))
    third = expect_plan(scheduler)
    assert second.tokens.tolist() == third.tokens.tolist() == [-1]
    scheduler.commit(second.step, np.zeros(1, np.int32))
    expect_plan(scheduler)
    with pytest.raises(ValueError, match="committed"):
        _ = first.tokens


def test_views_outlive_the_scheduler() -> None:
    scheduler = Scheduler(options())
    submit(scheduler, 1)
    plan = expect_plan(scheduler)
    tokens = plan.tokens
    del scheduler, plan
    gc.collect()
    assert tokens.tolist() == list(range(10))


def test_a_flush_drops_what_nobody_uses() -> None:
    scheduler = Scheduler(options())
    submit(scheduler, 1, tokens_max=1)
    plan = expect_plan(scheduler)
    scheduler.commit(plan.step, np.zeros(1, np.int32))
    assert scheduler.stats().blocks_frozen == 2
    assert scheduler.flush_prefix() == 2
    assert scheduler.stats().blocks_free == 64


def test_without_a_prefix_cache_nothing_is_frozen() -> None:
    scheduler = Scheduler(options(prefix_cache=False))
    submit(scheduler, 1, tokens_max=1)
    plan = expect_plan(scheduler)
    scheduler.commit(plan.step, np.zeros(1, np.int32))
    assert scheduler.stats().blocks_free == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks_total": 0}, "blocks_total is 0; the least is 1"),
        ({"rows_per_step_max": 64}, "tokens_per_step_max is 32; the least is 64"),
        ({"hash_key": b"short"}, "16 bytes"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scheduler(options(**changes))


def test_equal_events_give_equal_logs() -> None:
    logs = []
    for _ in range(2):
        scheduler = Scheduler(options(seed=3, overlap=True))
        submit(scheduler, 1)
        submit(scheduler, 2)
        while (plan := scheduler.plan(5)) is not None:
            scheduler.commit(plan.step, np.zeros(plan.samples, np.int32))
        logs.append(scheduler.log())
    assert logs[0] == logs[1]
    assert logs[0].startswith(b"TSL2\x03")


def test_calls_from_many_threads_wait_for_each_other() -> None:
    scheduler = Scheduler(options(waiting_max=400, blocks_total=1024))

    def offer(first: int) -> None:
        for request_id in range(first, first + 50):
            submit(scheduler, request_id, tokens_max=1)

    threads = [threading.Thread(target=offer, args=(first,)) for first in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    finished = 0
    while finished < 200:
        if (plan := scheduler.plan(0)) is not None:
            finished += int((scheduler.commit(plan.step, np.zeros(plan.samples, np.int32)).finish > 0).sum())
    for thread in threads:
        thread.join()
    scheduler.check()
    assert scheduler.idle


def test_a_broken_invariant_is_an_exception_of_its_own() -> None:
    assert issubclass(InvariantError, RuntimeError)
