# SPDX-License-Identifier: MIT
"""Hand-made plans: what a scheduler could say, right or wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Row:
    request_id: int
    slot: int
    start: int
    tokens: list[int]
    sampled: bool


@dataclass
class HandPlan:
    """The shape of `control.Plan`; deltas are (slot, index, block), bound are (slot, request id, cached tokens)."""

    step: int
    row_list: list[Row]
    deltas: list[tuple[int, int, int]] = field(default_factory=list)
    bound: list[tuple[int, int, int]] = field(default_factory=list)
    decode_rows: int = 0

    def __post_init__(self) -> None:
        rows = self.row_list
        self.rows = len(rows)
        self.request_ids = np.array([row.request_id for row in rows], dtype=np.uint64)
        self.slots = _int32(row.slot for row in rows)
        self.starts = _int32(row.start for row in rows)
        self.lengths = _int32(len(row.tokens) for row in rows)
        self.sampled = np.array([row.sampled for row in rows], dtype=np.uint8)
        self.tokens = _int32(token for row in rows for token in row.tokens)
        self.table_slots, self.table_indexes, self.table_blocks = (
            _int32(delta[column] for delta in self.deltas) for column in range(3)
        )
        self.bound_slots, self.cached_tokens = (_int32(bound[column] for bound in self.bound) for column in (0, 2))
        self.bound_request_ids = np.array([bound[1] for bound in self.bound], dtype=np.uint64)


def _int32(values) -> np.ndarray:
    return np.array(list(values), dtype=np.int32)
