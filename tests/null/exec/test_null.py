# SPDX-License-Identifier: MIT
"""The null executor: answers of the right shape made of the prompt, and steps that follow one another."""

from __future__ import annotations

import numpy as np

from tokenspeed.base.sampling import SamplingParams
from tokenspeed.control import Scheduler, SchedulerOptions
from tokenspeed.exec.null import NullExecutor

PROMPT = np.arange(100, 140, dtype=np.int32)
NO_STOPS = np.empty(0, np.int32)


def scheduler(*, overlap: bool = False) -> Scheduler:
    return Scheduler(
        SchedulerOptions(
            blocks_total=64,
            block_tokens=4,
            slots_max=4,
            tokens_per_step_max=16,
            rows_per_step_max=4,
            prefill_tokens_max=16,
            waiting_max=8,
            context_tokens_max=128,
            overlap=overlap,
            hash_key=bytes(16),
            seed=0,
        )
    )


def run(sampling: SamplingParams, *, overlap: bool) -> tuple[list[int], list[int]]:
    """The whole answer to `PROMPT`, and the length of each step's result."""
    control, executor = scheduler(overlap=overlap), NullExecutor(slots=4, step_us=0)
    control.submit(1, PROMPT, tokens_max=sampling.tokens_max, stop_ids=NO_STOPS, now_us=0)
    said: list[int] = []
    sizes: list[int] = []
    flights = []
    while not control.idle:
        plan = control.plan(0)
        if plan is not None:
            for slot in plan.bound_slots.tolist():
                executor.bind(slot, sampling, PROMPT, NO_STOPS)
            flights.append(executor.launch(plan))
        if plan is None or not overlap or len(flights) > 1:
            result = executor.retire(flights.pop(0))
            sizes.append(len(result.tokens))
            outcome = control.commit(result.step, result.tokens)
            said += [token for token in outcome.tokens.tolist() if token >= 0]
    return said, sizes


def test_an_answer_is_a_piece_of_its_prompt_with_and_without_overlap() -> None:
    for overlap in (False, True):
        said, sizes = run(SamplingParams(tokens_max=5), overlap=overlap)
        assert said == PROMPT[10:15].tolist()
        assert sizes[:3] == [0, 0, 1]  # 40 prompt tokens in chunks of 16: two steps yield nothing


def test_a_recorded_answer_is_said() -> None:
    forced = np.array([7, 8, 9], "<i4").tobytes()
    assert run(SamplingParams(tokens_max=3, forced=forced), overlap=False)[0] == [7, 8, 9]


def test_steps_run_one_after_the_other() -> None:
    control, executor = scheduler(), NullExecutor(slots=4, step_us=1000)
    control.submit(1, PROMPT, tokens_max=1, stop_ids=NO_STOPS, now_us=0)
    first = control.plan(0)
    assert first is not None
    executor.bind(int(first.bound_slots[0]), SamplingParams(tokens_max=1), PROMPT, NO_STOPS)
    one, other = executor.launch(first), executor.launch(first)
    assert other.done_ns - one.done_ns == 1_000_000
