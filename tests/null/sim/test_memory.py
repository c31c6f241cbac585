# SPDX-License-Identifier: MIT
"""The simulated memory gives back the history that was written, and nothing else."""

from __future__ import annotations

import pytest

from tokenspeed.sim import model
from tokenspeed.sim.memory import Memory
from tokenspeed.sim.violation import ViolationError

ROOT = model.root(b"")
HISTORY = model.fold(ROOT, range(8))  # of 8 tokens: two blocks of 4


@pytest.fixture
def memory() -> Memory:
    memory = Memory(4, 4)
    memory.write(2, 0, HISTORY[:5])
    return memory


def test_full_block_reads_as_written(memory: Memory) -> None:
    assert memory.read(2, 4, ROOT) == HISTORY[4]


def test_head_of_a_block_reads_as_written(memory: Memory) -> None:
    assert memory.read(2, 3, ROOT) == HISTORY[3]


def test_block_written_in_pieces_reads_as_written_whole(memory: Memory) -> None:
    memory.write(0, 0, HISTORY[4:6])
    memory.write(0, 1, HISTORY[5:9])
    assert memory.read(0, 4, HISTORY[4]) == HISTORY[8]


def test_slots_never_written_do_not_read(memory: Memory) -> None:
    memory.write(0, 0, HISTORY[:3])
    with pytest.raises(ViolationError, match="memory"):
        memory.read(0, 3, ROOT)


def test_block_of_another_history_does_not_read(memory: Memory) -> None:
    with pytest.raises(ViolationError, match="memory"):
        memory.read(2, 4, model.root(b"other"))


def test_overwritten_block_keeps_no_tail_of_its_former_history(memory: Memory) -> None:
    memory.write(2, 0, model.fold(ROOT, [99, 98]))
    with pytest.raises(ViolationError, match="memory"):
        memory.read(2, 3, ROOT)


def test_write_that_does_not_follow_what_is_there_is_refused(memory: Memory) -> None:
    memory.write(1, 0, HISTORY[:2])
    with pytest.raises(ViolationError, match="memory"):
        memory.write(1, 1, model.fold(HISTORY[2], [5]))
    with pytest.raises(ViolationError, match="memory"):
        memory.write(3, 2, HISTORY[2:4])
