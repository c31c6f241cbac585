# SPDX-License-Identifier: MIT
"""The simulated executor: right plans give the lone run's tokens, each kind of wrong plan is a violation of
its law."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest

from tokenspeed.base.clock import FakeClock
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.control import SchedulerOptions
from tokenspeed.sim import model
from tokenspeed.sim.cost import StepCost
from tokenspeed.sim.executor import SimExecutor
from tokenspeed.sim.trace import Trace
from tokenspeed.sim.violation import ViolationError

P = 4  # tokens per block
SALTS = {1: b"", 2: b"", 3: b"other"}
PROMPT = [11, 12, 13, 14, 15, 16]


@dataclass
class Row:
    request_id: int
    slot: int
    start: int
    tokens: list[int]
    sampled: bool


@dataclass
class HandPlan:
    """The shape of `control.Plan`; deltas are (slot, index, block), bound are (slot, request id, cached
    tokens)."""

    step: int
    row_list: list[Row]
    deltas: list[tuple[int, int, int]] = field(default_factory=list)
    bound: list[tuple[int, int, int]] = field(default_factory=list)
    decode_rows: int = 0
    groups: list[tuple[list[int], int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = self.row_list
        self.group_rows = _int32(row for members, _ in self.groups for row in members)
        self.group_sizes = _int32(len(members) for members, _ in self.groups)
        self.group_blocks = _int32(blocks for _, blocks in self.groups)
        self.rows = len(rows)
        self.copy_ids = np.empty(0, np.uint64)
        self.copy_from_tiers = self.copy_to_tiers = np.empty(0, np.uint8)
        self.copy_from = self.copy_to = _int32(())
        self.request_ids = np.array([row.request_id for row in rows], dtype=np.uint64)
        self.slots = _int32(row.slot for row in rows)
        self.starts = _int32(row.start for row in rows)
        self.lengths = _int32(len(row.tokens) for row in rows)
        self.sampled = np.array([row.sampled for row in rows], dtype=np.uint8)
        self.tokens = _int32(token for row in rows for token in row.tokens)
        self.table_slots, self.table_indexes, self.table_blocks = (
            _int32(delta[column] for delta in self.deltas) for column in range(3)
        )
        self.bound_slots, self.cached_tokens = (
            _int32(bound[column] for bound in self.bound) for column in (0, 2)
        )
        self.bound_request_ids = np.array([bound[1] for bound in self.bound], dtype=np.uint64)


def _int32(values) -> np.ndarray:
    return np.array(list(values), dtype=np.int32)


class Script(Random):
    """Draws below one half where something is to fail, then never again."""

    def __init__(self, failing: tuple[bool, ...]) -> None:
        super().__init__(0)
        self.failing = list(failing)

    def random(self) -> float:
        return 0.0 if self.failing and self.failing.pop(0) else 0.9


class Stage:
    """An executor with requests on it. `lone[r]` is what request r says alone."""

    def __init__(self, *, failing: tuple[bool, ...] = (), **limits: int) -> None:
        """`failing` says of the first rows whether they fail."""
        values = {
            "blocks_total": 8,
            "block_tokens": P,
            "slots_max": 4,
            "tokens_per_step_max": 16,
            "rows_per_step_max": 3,
            "prefill_tokens_max": 12,
            "waiting_max": 4,
            "context_tokens_max": 24,
            **limits,
        }
        options = SchedulerOptions(
            **values, prefix_cache=True, overlap=True, hash_key=bytes(16), log_bytes=1024, seed=0
        )
        clock = FakeClock()
        self.clock = clock
        self.faults: list[int] = []
        self.prompt_tokens = 0  # of the request bound last
        self.executor = SimExecutor(
            options,
            origin_of=lambda request_id: (SALTS[request_id], self.prompt_tokens),
            faulted=self.faults.append,
            clock=clock,
            cost=StepCost(base_us=100, token_us=1.0, context_us=0.0, jitter=0.0),
            random=Script(failing),
            fault_chance=0.5,
            trace=Trace(clock),
        )
        self.step = 0

    def bind(self, slot: int, prompt: list[int], output: list[int] | None = None, seed: int = 7) -> None:
        self.prompt_tokens = len(prompt)
        as_ids = [np.array(tokens, dtype=np.int32) for tokens in (prompt, output or [])]
        self.executor.bind(slot, SamplingParams(seed=seed, tokens_max=8), *as_ids)

    def launch(self, *rows: Row, **rest):
        self.step += 1
        return self.executor.launch(HandPlan(self.step, list(rows), **rest))

    def run(self, *rows: Row, **rest) -> list[int]:
        return self.executor.retire(self.launch(*rows, **rest)).tokens.tolist()

    def prefill(self, request_id: int = 1, slot: int = 0, blocks: tuple[int, ...] = (0, 1)) -> int:
        """Run the prompt of a request whole; returns its first token."""
        self.bind(slot, PROMPT)
        (token,) = self.run(
            Row(request_id, slot, 0, PROMPT, True),
            deltas=[(slot, index, block) for index, block in enumerate(blocks)],
            bound=[(slot, request_id, 0)],
        )
        return token


def lone(salt: bytes, count: int, seed: int = 7, prompt: list[int] = PROMPT) -> list[int]:
    return model.complete(model.fold(model.root(salt), prompt)[-1], seed, count)


def breaks(law: str):
    return pytest.raises(ViolationError, match=f"^{law}: ")


def test_whole_prompt_and_decode_say_what_the_lone_run_says() -> None:
    stage = Stage()
    said = [stage.prefill()]
    said += stage.run(Row(1, 0, 6, [said[-1]], True), decode_rows=1)
    said += stage.run(Row(1, 0, 7, [said[-1]], True), decode_rows=1)
    said += stage.run(Row(1, 0, 8, [said[-1]], True), deltas=[(0, 2, 5)], decode_rows=1)
    assert said == lone(b"", 4)


def test_chunks_say_what_the_whole_says() -> None:
    stage = Stage()
    stage.bind(0, PROMPT)
    deltas = [(0, 0, 3), (0, 1, 2)]
    assert stage.run(Row(1, 0, 0, PROMPT[:3], False), deltas=deltas, bound=[(0, 1, 0)]) == []
    assert stage.run(Row(1, 0, 3, PROMPT[3:], True)) == lone(b"", 1)


def test_token_in_flight_is_taken_from_the_device() -> None:
    stage = Stage()
    stage.bind(0, PROMPT)
    first = stage.launch(Row(1, 0, 0, PROMPT, True), deltas=[(0, 0, 0), (0, 1, 1)], bound=[(0, 1, 0)])
    second = stage.launch(Row(1, 0, 6, [-1], True), decode_rows=1)
    said = [stage.executor.retire(flight).tokens.tolist() for flight in (first, second)]
    assert said == [[token] for token in lone(b"", 2)]


def test_prefix_hit_says_what_cold_says() -> None:
    stage = Stage()
    stage.prefill()
    stage.bind(1, PROMPT)
    said = stage.run(Row(2, 1, 4, PROMPT[4:], True), deltas=[(1, 0, 0), (1, 1, 2)], bound=[(1, 2, 4)])
    assert said == lone(b"", 1)


def test_resumed_request_continues_its_output() -> None:
    stage = Stage()
    first = stage.prefill()
    stage.bind(2, PROMPT, [first])
    deltas = [(2, 0, 4), (2, 1, 5)]
    assert (
        stage.run(Row(1, 2, 0, [*PROMPT, first], True), deltas=deltas, bound=[(2, 1, 0)]) == lone(b"", 2)[1:]
    )


def test_seed_is_of_the_request_in_the_slot() -> None:
    stage = Stage()
    stage.bind(0, PROMPT, seed=8)
    said = stage.run(Row(1, 0, 0, PROMPT, True), deltas=[(0, 0, 0), (0, 1, 1)], bound=[(0, 1, 0)])
    assert said == lone(b"", 1, seed=8) != lone(b"", 1)


def test_clock_moves_to_the_end_of_a_step_at_retire() -> None:
    stage = Stage()
    stage.bind(0, PROMPT)
    flight = stage.launch(Row(1, 0, 0, PROMPT, True), deltas=[(0, 0, 0), (0, 1, 1)], bound=[(0, 1, 0)])
    assert stage.clock.now_us() == 0
    stage.executor.retire(flight)
    assert stage.clock.now_us() == 106


def test_failed_row_yields_no_token_and_is_reported() -> None:
    stage = Stage(failing=(True,))
    assert stage.prefill() == -1
    assert stage.faults == [1]


def test_failed_row_that_is_not_sampled_is_a_fault_of_the_step() -> None:
    stage = Stage(failing=(True,))
    stage.bind(0, PROMPT)
    flight = stage.launch(Row(1, 0, 0, PROMPT[:3], False), deltas=[(0, 0, 0)], bound=[(0, 1, 0)])
    result = stage.executor.retire(flight)
    assert (result.tokens.tolist(), result.faults, stage.faults) == ([], (0,), [1])


def test_row_after_a_failed_one_fails_too() -> None:
    stage = Stage(failing=(True, False))
    stage.bind(0, PROMPT)
    first = stage.launch(Row(1, 0, 0, PROMPT, True), deltas=[(0, 0, 0), (0, 1, 1)], bound=[(0, 1, 0)])
    second = stage.launch(Row(1, 0, 6, [-1], True), decode_rows=1)
    assert [stage.executor.retire(flight).tokens.tolist() for flight in (first, second)] == [[-1], [-1]]


def test_hit_on_what_a_failed_row_wrote_breaks_memory() -> None:
    stage = Stage(failing=(True,))
    stage.prefill()
    stage.bind(1, PROMPT)
    with breaks("memory"):
        stage.run(Row(2, 1, 4, PROMPT[4:], True), deltas=[(1, 0, 0), (1, 1, 2)], bound=[(1, 2, 4)])


def test_block_of_a_failed_row_is_good_again_once_rewritten() -> None:
    stage = Stage(failing=(True,))
    stage.prefill()
    assert stage.prefill(2, 1) == lone(b"", 1)[0]


def test_hit_on_another_tenants_block_breaks_memory() -> None:
    stage = Stage()
    stage.prefill()
    stage.bind(1, PROMPT)
    with breaks("memory"):
        stage.run(Row(3, 1, 4, PROMPT[4:], True), deltas=[(1, 0, 0), (1, 1, 2)], bound=[(1, 3, 4)])


def test_swapped_blocks_break_memory() -> None:
    stage = Stage()
    token = stage.prefill()
    with breaks("memory"):
        stage.run(Row(1, 0, 6, [token], True), deltas=[(0, 0, 1), (0, 1, 0)], decode_rows=1)


def test_dropped_delta_of_a_hit_breaks_memory() -> None:
    stage = Stage()
    stage.prefill()
    stage.bind(1, PROMPT)
    with breaks("memory"):
        stage.run(Row(2, 1, 4, PROMPT[4:], True), deltas=[(1, 1, 2)], bound=[(1, 2, 4)])


def test_hit_on_a_partly_written_block_breaks_memory() -> None:
    stage = Stage()
    stage.prefill()
    longer = [*PROMPT, 1, 2, 3]
    stage.bind(1, longer)
    deltas = [(1, 0, 0), (1, 1, 1), (1, 2, 2)]
    with breaks("memory"):
        stage.run(Row(2, 1, 8, longer[8:], True), deltas=deltas, bound=[(1, 2, 8)])


def test_write_to_a_block_that_another_request_reads_breaks_memory_at_the_next_read() -> None:
    stage = Stage()
    token = stage.prefill()
    stage.bind(1, PROMPT[::-1])
    stage.run(Row(2, 1, 0, PROMPT[::-1], True), deltas=[(1, 0, 0), (1, 1, 2)], bound=[(1, 2, 0)])
    with breaks("memory"):
        stage.run(Row(1, 0, 6, [token], True), decode_rows=1)


def sharing() -> tuple[Stage, list[Row]]:
    """Two requests that read block 0 and each a block of its own, and their next decode rows."""
    stage = Stage()
    said = stage.prefill()
    stage.bind(1, PROMPT)
    (other,) = stage.run(Row(2, 1, 4, PROMPT[4:], True), deltas=[(1, 0, 0), (1, 1, 5)], bound=[(1, 2, 4)])
    return stage, [Row(1, 0, 6, [said], True), Row(2, 1, 6, [other], True)]


def test_rows_that_begin_with_the_same_blocks_may_be_grouped() -> None:
    stage, rows = sharing()
    assert stage.run(*rows, decode_rows=2, groups=[([0, 1], 1)]) == [lone(b"", 2)[1]] * 2


def test_group_of_unequal_blocks_breaks_memory() -> None:
    stage, rows = sharing()
    with breaks("memory"):
        stage.launch(*rows, decode_rows=2, groups=[([0, 1], 2)])


def test_row_in_two_groups_breaks_i7() -> None:
    stage, rows = sharing()
    with breaks("I7"):
        stage.launch(*rows, decode_rows=2, groups=[([0, 1], 1), ([1, 0], 1)])


def test_dropped_delta_of_a_new_block_breaks_i7() -> None:
    stage = Stage()
    stage.bind(0, PROMPT)
    with breaks("I7"):
        stage.launch(Row(1, 0, 0, PROMPT, True), deltas=[(0, 0, 0)], bound=[(0, 1, 0)])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (Row(1, 0, 7, [0], True), "a gap"),
        (Row(1, 0, 5, [*PROMPT[5:], 0], True), "a token again"),
        (Row(2, 0, 6, [0], True), "another request's slot"),
        (Row(1, 1, 6, [0], True), "a slot of nobody"),
        (Row(1, 0, 6, [], True), "no token"),
        (Row(1, 0, 6, [4711], True), "a token that is not its own"),
        (Row(1, 0, 6, [0, 0], True), "more tokens than are known"),
        (Row(1, 0, 6, [-1], False), "an end that is not sampled"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else None,
)
def test_row_that_does_not_continue_what_is_there_breaks_i7(row: Row, why: str) -> None:
    stage = Stage()
    stage.prefill()
    with breaks("I7"):
        stage.launch(row)


def test_last_sampled_token_of_a_fresh_slot_breaks_i7() -> None:
    stage = Stage()
    stage.bind(0, PROMPT[:1])
    with breaks("I7"):
        stage.launch(Row(1, 0, 0, [-1], True), deltas=[(0, 0, 0)], bound=[(0, 1, 0)])


def test_two_rows_that_write_one_block_break_i7() -> None:
    stage = Stage()
    stage.bind(0, PROMPT[:2])
    stage.bind(1, PROMPT[:2])
    rows = [Row(1, 0, 0, PROMPT[:2], True), Row(2, 1, 0, PROMPT[:2], True)]
    with breaks("I7"):
        stage.launch(*rows, deltas=[(0, 0, 0), (1, 0, 0)], bound=[(0, 1, 0), (1, 2, 0)])


def test_plan_that_binds_what_the_loop_did_not_breaks_i7() -> None:
    with breaks("I7"):
        Stage().launch(Row(1, 0, 0, PROMPT, True), bound=[(0, 1, 0)])


def test_prompt_bound_as_output_breaks_i7() -> None:
    stage = Stage()
    stage.bind(0, PROMPT[:5], PROMPT[5:])
    stage.prompt_tokens = 6
    with breaks("I7"):
        stage.launch(Row(1, 0, 0, PROMPT, True), deltas=[(0, 0, 0), (0, 1, 1)], bound=[(0, 1, 0)])


def test_block_in_flight_given_to_another_request_breaks_i6() -> None:
    stage = Stage()
    stage.bind(0, PROMPT)
    stage.launch(Row(1, 0, 0, PROMPT, True), deltas=[(0, 0, 0), (0, 1, 1)], bound=[(0, 1, 0)])
    stage.bind(1, PROMPT)
    with breaks("I6"):
        stage.launch(Row(2, 1, 0, PROMPT, True), deltas=[(1, 0, 2), (1, 1, 1)], bound=[(1, 2, 0)])


def test_block_read_in_flight_and_written_by_another_request_breaks_i6() -> None:
    stage = Stage()
    token = stage.prefill()
    stage.launch(Row(1, 0, 6, [token], True), decode_rows=1)
    stage.bind(1, PROMPT)
    with breaks("I6"):
        stage.launch(Row(2, 1, 0, PROMPT, True), deltas=[(1, 0, 0), (1, 1, 2)], bound=[(1, 2, 0)])


def test_hit_on_a_block_of_the_same_step_breaks_i6() -> None:
    stage = Stage()
    stage.bind(0, PROMPT)
    stage.bind(1, PROMPT)
    rows = [Row(1, 0, 0, PROMPT, True), Row(2, 1, 4, PROMPT[4:], True)]
    deltas = [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 2)]
    with breaks("I6"):
        stage.launch(*rows, deltas=deltas, bound=[(0, 1, 0), (1, 2, 4)])


def test_slot_in_flight_bound_again_breaks_i6() -> None:
    stage = Stage()
    token = stage.prefill()
    stage.launch(Row(1, 0, 6, [token], True), decode_rows=1)
    stage.bind(0, PROMPT)
    with breaks("I6"):
        stage.launch(Row(2, 0, 0, PROMPT, True), deltas=[(0, 0, 2), (0, 1, 3)], bound=[(0, 2, 0)])


@pytest.mark.parametrize(
    "limits",
    [{"tokens_per_step_max": 5}, {"prefill_tokens_max": 5}, {"context_tokens_max": 5}, {"blocks_total": 1}],
    ids=lambda limits: next(iter(limits)),
)
def test_plan_over_a_limit_breaks_i5(limits: dict[str, int]) -> None:
    stage = Stage(**limits)
    stage.bind(0, PROMPT)
    with breaks("I5"):
        stage.launch(Row(1, 0, 0, PROMPT, True), deltas=[(0, 0, 0), (0, 1, 1)], bound=[(0, 1, 0)])


def test_more_rows_than_fit_break_i5() -> None:
    stage = Stage(rows_per_step_max=1)
    stage.bind(0, PROMPT[:1])
    stage.bind(1, PROMPT[:1])
    rows = [Row(1, 0, 0, PROMPT[:1], True), Row(2, 1, 0, PROMPT[:1], True)]
    with breaks("I5"):
        stage.launch(*rows, deltas=[(0, 0, 0), (1, 0, 1)], bound=[(0, 1, 0), (1, 2, 0)])


def test_decode_row_of_two_tokens_breaks_i5() -> None:
    stage = Stage()
    stage.bind(0, PROMPT[:2])
    with breaks("I5"):
        stage.launch(Row(1, 0, 0, PROMPT[:2], True), deltas=[(0, 0, 0)], bound=[(0, 1, 0)], decode_rows=1)


@pytest.mark.parametrize("cached", [6, 8, 3, -4])
def test_hit_of_the_whole_history_or_of_half_a_block_breaks_cache(cached: int) -> None:
    stage = Stage()
    stage.bind(0, PROMPT)
    with breaks("cache"):
        stage.launch(Row(1, 0, max(cached, 0), PROMPT[5:], True), bound=[(0, 1, cached)])


def test_retire_out_of_order_breaks_i9() -> None:
    stage = Stage()
    token = stage.prefill()
    stage.launch(Row(1, 0, 6, [token], True), decode_rows=1)
    second = stage.launch(Row(1, 0, 7, [-1], True), decode_rows=1)
    with breaks("I9"):
        stage.executor.retire(second)


def test_step_number_that_goes_back_breaks_i9() -> None:
    stage = Stage()
    token = stage.prefill()
    stage.step = 0
    with breaks("I9"):
        stage.launch(Row(1, 0, 6, [token], True), decode_rows=1)
