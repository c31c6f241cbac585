# SPDX-License-Identifier: MIT
"""Memory of what was said: lines are taken by penalised slots, given back, and never confused."""

from __future__ import annotations

import numpy as np
import torch

from tokenspeed.sampling.history import History


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def penalised(history: History, slot: int) -> list[float]:
    """Read a slot's line as 100 where a token was said or asked, less its count in the output."""
    one = torch.ones(1)
    rows = history.penalised(torch.full((1, 4), 200.0), ids(slot), one * 0, one, one * 2)
    return rows[0].tolist()


def test_lines_hold_prompt_and_output() -> None:
    history = History(4, torch.device("cpu"))
    history.bind(7, ids(0, 0), ids(1, 1, 2))
    history.note(ids(7), torch.tensor([2]))
    assert penalised(history, 7) == [100.0, 98.0, 98.0, 200.0]


def test_memory_follows_the_most_penalised_at_once() -> None:
    history = History(4, torch.device("cpu"))
    for slot in range(3):
        history.bind(slot, ids(slot), ids())
    assert history.lines == 4
    for slot in range(100):
        history.release(slot)
        history.bind(slot + 3, ids(3), ids(slot % 4))
        history.release(slot + 3)
    assert history.lines == 4


def test_lines_grown_keep_what_was_said() -> None:
    history = History(4, torch.device("cpu"))
    for slot in range(9):
        history.bind(slot, ids(), ids(*[slot % 4] * slot))
    for slot in range(1, 9):
        assert penalised(history, slot)[slot % 4] == 100.0 - slot


def test_line_bound_again_is_clean_and_release_of_nothing_is_nothing() -> None:
    history = History(4, torch.device("cpu"))
    history.bind(0, ids(1), ids(2))
    history.bind(0, ids(3), ids())
    assert penalised(history, 0) == [200.0, 200.0, 200.0, 100.0]
    history.release(5)
