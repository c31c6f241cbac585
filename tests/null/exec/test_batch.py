# SPDX-License-Identifier: MIT
"""The layout of a plan: equal to the plain definition for any plan, at addresses that never move.

Each test runs twice: on the host's own memory, as on a CPU, and mirrored into other memory, as on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed.exec import batch as batch_module
from tokenspeed.exec.batch import Batch, BatchLimits
from tokenspeed.layers.step import StepInputs

LIMITS = BatchLimits(slots=6, rows=6, tokens=64, context_tokens=50, block_tokens=4)
CPU = torch.device("cpu")


def lay(batch: Batch, plan: Any) -> StepInputs:
    """Lay a plan out as a step does."""
    laid = batch.lay(plan)
    batch.settle(laid)
    return laid.inputs


@st.composite
def _rows(draw: st.DrawFn) -> list[tuple[int, int, list[int], bool]]:
    slots = draw(st.permutations(range(LIMITS.slots)))[: draw(st.integers(1, LIMITS.rows))]
    decoding = draw(st.integers(0, len(slots)))
    rows: list[tuple[int, int, list[int], bool]] = []
    for index, slot in enumerate(slots):
        start = draw(st.integers(0, 40))
        count = 1 if index < decoding else draw(st.integers(2, 9))
        tokens = draw(st.lists(st.integers(0, 99), min_size=count, max_size=count))
        rows.append((slot, start, tokens, index < decoding or draw(st.booleans())))
    return rows


@pytest.mark.parametrize("mirrored", [False, True])
@settings(deadline=None)
@given(rows=_rows(), random=st.randoms(use_true_random=False))
def test_layout_is_the_plain_definition(
    plain_plan: Any, mirrored: bool, rows: list[tuple[int, int, list[int], bool]], random: Any
) -> None:
    blocks = list(range(LIMITS.slots * LIMITS.blocks_per_row))
    random.shuffle(blocks)
    table = np.array(blocks, dtype=np.int32).reshape(LIMITS.slots, LIMITS.blocks_per_row)
    deltas = [
        (slot, index, int(table[slot, index])) for slot in range(6) for index in range(LIMITS.blocks_per_row)
    ]
    batch = Batch(LIMITS, CPU, mirrored=mirrored)

    inputs = lay(batch, plain_plan(rows, deltas=deltas))

    assert inputs.token_ids.tolist() == [token for _, _, tokens, _ in rows for token in tokens]
    positions = [start + i for _, start, tokens, _ in rows for i in range(len(tokens))]
    assert inputs.positions.tolist() == positions
    owners = [slot for slot, _, tokens, _ in rows for _ in tokens]
    where = [int(table[slot, p // 4]) * 4 + p % 4 for slot, p in zip(owners, positions, strict=True)]
    assert inputs.write_index.tolist() == where
    ends = np.cumsum([len(tokens) for _, _, tokens, _ in rows]).tolist()
    assert inputs.row_starts.tolist() == [0, *ends] == inputs.row_starts_np.tolist()
    context = [start + len(tokens) for _, start, tokens, _ in rows]
    assert inputs.context_lens.tolist() == context == inputs.context_lens_np.tolist()
    assert inputs.sample_index.tolist() == [end - 1 for end, row in zip(ends, rows, strict=True) if row[3]]
    assert inputs.block_table.is_contiguous()
    for index, (slot, _, _, _) in enumerate(rows):
        used = -(-context[index] // 4)
        assert inputs.block_table[index, :used].tolist() == table[slot, :used].tolist()


@pytest.mark.parametrize("mirrored", [False, True])
def test_tables_persist_and_take_deltas(plain_plan: Any, mirrored: bool) -> None:
    batch = Batch(LIMITS, CPU, mirrored=mirrored)
    lay(batch, plain_plan([(2, 0, [1, 2, 3, 4, 5], True)], deltas=[(2, 0, 7), (2, 1, 9)]))
    inputs = lay(batch, plain_plan([(2, 8, [6], True)], deltas=[(2, 2, 1)]))
    assert inputs.block_table.tolist() == [[7, 9, 1]]
    assert inputs.write_index.tolist() == [4]
    assert batch.blocks_of(2, 9).tolist() == [7, 9, 1]
    assert batch.blocks_of(2, 8).tolist() == [7, 9]


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_token_in_flight_is_the_slots_last(plain_plan: Any, mirrored: bool) -> None:
    batch = Batch(LIMITS, CPU, mirrored=mirrored)
    batch.last_tokens[3] = 42
    batch.last_tokens[1] = 43
    inputs = lay(
        batch, plain_plan([(3, 5, [-1], True), (0, 5, [8], True), (1, 2, [-1], True), (2, 0, [4, 5], True)])
    )
    assert inputs.token_ids.tolist() == [42, 8, 43, 4, 5]


@pytest.mark.parametrize("mirrored", [False, True])
def test_addresses_do_not_move(plain_plan: Any, mirrored: bool) -> None:
    batch = Batch(LIMITS, CPU, mirrored=mirrored)
    names = (
        "token_ids",
        "positions",
        "write_index",
        "row_starts",
        "context_lens",
        "block_table",
        "sample_index",
    )
    first = lay(batch, plain_plan([(0, 0, [1, 2], True)]))
    before = {name: getattr(first, name).data_ptr() for name in names}
    second = lay(batch, plain_plan([(4, 9, [1], True), (1, 0, [1, 2, 3], False)]))
    assert {name: getattr(second, name).data_ptr() for name in names} == before


@pytest.mark.parametrize("mirrored", [False, True])
def test_of_two_changes_of_an_entry_the_later_counts(plain_plan: Any, mirrored: bool) -> None:
    batch = Batch(LIMITS, CPU, mirrored=mirrored)
    inputs = lay(batch, plain_plan([(2, 0, [1], True)], deltas=[(2, 0, 7), (2, 0, 9)]))
    assert inputs.block_table.tolist() == [[9]]


def test_padding_does_nothing_and_belongs_to_nobody(plain_plan: Any) -> None:
    batch = Batch(LIMITS, CPU, mirrored=True)
    batch.last_tokens[4], batch.last_tokens[LIMITS.slots] = 42, 43
    rows = [(4, 5, [-1], True), (1, 11, [8], True)]
    deltas = [(4, 0, 6), (4, 1, 9), (1, 2, 3)]
    laid = batch.lay_padded(plain_plan(rows, deltas=deltas), 5)
    batch.settle(laid)
    inputs = laid.inputs
    assert (inputs.rows, inputs.decode_rows) == (5, 5)
    assert inputs.token_ids.tolist() == [42, 8, 0, 0, 0]
    assert inputs.positions.tolist() == [5, 11, 0, 0, 0]
    assert inputs.write_index.tolist() == [9 * 4 + 1, 3 * 4 + 3, -1, -1, -1]
    assert inputs.context_lens.tolist() == [6, 12, 0, 0, 0] == inputs.context_lens_np.tolist()
    assert inputs.row_starts.tolist() == [0, 1, 2, 3, 4, 5]
    assert inputs.sample_index.tolist() == [0, 1, 2, 3, 4]
    assert inputs.block_table.shape == (5, LIMITS.blocks_per_row)
    assert inputs.block_table[:3, :3].tolist() == [[6, 9, 0], [0, 0, 3], [0, 0, 0]]
    assert laid.slots.tolist() == laid.sample_slots.tolist() == [4, 1, *[LIMITS.slots] * 3]
    assert laid.sample_positions[:2].tolist() == [6, 12]


def test_a_graphs_inputs_lie_where_its_padding_lay(plain_plan: Any) -> None:
    batch = Batch(LIMITS, CPU, mirrored=True)
    recorded = batch.lay_padding(4).inputs
    replayed = batch.lay_padded(plain_plan([(2, 3, [7], True)]), 4).inputs
    for name in (
        "token_ids",
        "positions",
        "write_index",
        "row_starts",
        "context_lens",
        "block_table",
        "sample_index",
    ):
        ours, theirs = getattr(recorded, name), getattr(replayed, name)
        assert (ours.data_ptr(), ours.shape) == (theirs.data_ptr(), theirs.shape)
    assert recorded.token_ids.tolist() == [7, 0, 0, 0]


def test_more_changes_than_foreseen_arrive_too(plain_plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "CONTEXTS_BOUND", 0)
    limits = BatchLimits(slots=2, rows=2, tokens=9, context_tokens=400, block_tokens=4)
    batch = Batch(limits, CPU, mirrored=True)
    deltas = [(1, index, 100 - index) for index in range(90)]
    inputs = lay(batch, plain_plan([(1, 350, [1, 2, 3], True)], deltas=deltas))
    assert inputs.block_table.tolist() == [[100 - index for index in range(89)]]


def test_what_rows_share_is_laid_out_apart_from_what_each_has_alone(plain_plan: Any) -> None:
    batch = Batch(LIMITS, CPU, mirrored=True)
    width = LIMITS.blocks_per_row
    assert batch.lay_padded(plain_plan([(0, 30, [7], True)]), 2).inputs.shared is None
    rows = [(slot, start, [-1], True) for slot, start in enumerate((30, 17, 31, 9, 22))]
    plan = plain_plan(rows, groups=[([4, 0], 5), ([2, 1], 3)])
    shared = batch.lay_padded(plan, 6, shared=True).inputs.shared
    assert shared is not None
    assert shared.order.tolist() == [4, 0, 2, 1, 0, 0]
    assert shared.row_starts.tolist() == [0, 2, 4, 4]
    assert shared.context_lens.tolist() == [20, 12, 0]  # the third group is none
    assert shared.table_at.tolist() == [4 * width, 2 * width, 0]
    assert shared.own_lens.tolist() == [31 - 20, 18 - 12, 32 - 12, 10, 23 - 20, 0]
    assert shared.own_at.tolist() == [5, width + 3, 2 * width + 3, 3 * width, 4 * width + 5, 5 * width]
    assert shared.place_of.tolist() == [1, 3, 2, -1, 0, -1]


def test_padding_shares_nothing_and_lies_where_sharing_does(plain_plan: Any) -> None:
    batch = Batch(LIMITS, CPU, mirrored=True)
    rows = [(slot, 30, [-1], True) for slot in range(4)]
    sharing = batch.lay_padded(plain_plan(rows, groups=[([3, 1, 0], 2)]), 4, shared=True).inputs.shared
    padding = batch.lay_padding(4, shared=True).inputs.shared
    assert padding is sharing
    assert padding is not None
    assert padding.row_starts.tolist() == [*padding.context_lens.tolist(), 0] == [0, 0, 0]
    assert padding.place_of.tolist() == [-1] * 4
    assert padding.own_lens.tolist() == [0] * 4
