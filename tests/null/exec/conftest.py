# SPDX-License-Identifier: MIT
"""Plans as plain values, written by hand, for tests of what carries them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray


def _i32(*values: int) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


@dataclass
class PlainPlan:
    """The fields of `control.plan.Plan`, written by hand."""

    step: int
    slots: NDArray[np.int32]
    starts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    sampled: NDArray[np.uint8]
    tokens: NDArray[np.int32]
    decode_rows: int = 0
    table_slots: NDArray[np.int32] = field(default_factory=_i32)
    table_indexes: NDArray[np.int32] = field(default_factory=_i32)
    table_blocks: NDArray[np.int32] = field(default_factory=_i32)
    group_rows: NDArray[np.int32] = field(default_factory=_i32)
    group_sizes: NDArray[np.int32] = field(default_factory=_i32)
    group_blocks: NDArray[np.int32] = field(default_factory=_i32)

    @property
    def rows(self) -> int:
        return len(self.slots)

    @property
    def samples(self) -> int:
        return int(self.sampled.sum())


def _plain_plan(
    rows: list[tuple[int, int, list[int], bool]],
    *,
    step: int = 0,
    deltas: list[tuple[int, int, int]] | None = None,
    groups: list[tuple[list[int], int]] | None = None,
) -> PlainPlan:
    """A plan of rows (slot, start, new tokens, sampled); single-token rows that are sampled come first."""
    slots, starts, tokens, sampled = zip(*rows, strict=True)
    decode_rows = 0
    while decode_rows < len(rows) and len(tokens[decode_rows]) == 1 and sampled[decode_rows]:
        decode_rows += 1
    columns = list(zip(*deltas, strict=True)) if deltas else [(), (), ()]
    return PlainPlan(
        step,
        _i32(*slots),
        _i32(*starts),
        _i32(*(len(new) for new in tokens)),
        np.array(sampled, dtype=np.uint8),
        _i32(*(token for new in tokens for token in new)),
        decode_rows,
        *(_i32(*column) for column in columns),
        _i32(*(row for members, _ in groups or () for row in members)),
        _i32(*(len(members) for members, _ in groups or ())),
        _i32(*(blocks for _, blocks in groups or ())),
    )


@pytest.fixture(scope="session")
def plain_plan() -> Callable[..., PlainPlan]:
    """Make a plan: `plain_plan(rows, step=, deltas=)`."""
    return _plain_plan
