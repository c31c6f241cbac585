# SPDX-License-Identifier: MIT
"""Memory of what was said: lines are taken by penalised slots, given back, and never confused."""

from __future__ import annotations

import numpy as np
import torch

from tokenspeed.sampling.history import History


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def held(history: History, line: int) -> tuple[list[int], list[bool]]:
    return history.counts[line].tolist(), history.in_prompt[line].tolist()


def test_lines_hold_prompt_and_output() -> None:
    history = History(4, torch.device("cpu"))
    line = history.bind(7, ids(0, 0), ids(1, 1, 2))
    assert held(history, line) == ([0, 2, 1, 0], [True, False, False, False])


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
    lines = [history.bind(slot, ids(), ids(*[slot % 4] * slot)) for slot in range(9)]
    assert len(set(lines)) == 9
    for slot, line in enumerate(lines):
        assert held(history, line)[0][slot % 4] == slot


def test_line_bound_again_is_clean_and_release_of_nothing_is_nothing() -> None:
    history = History(4, torch.device("cpu"))
    first = history.bind(0, ids(1), ids(2))
    assert history.bind(0, ids(3), ids()) == first
    assert held(history, first) == ([0, 0, 0, 0], [False, False, False, True])
    history.release(5)
