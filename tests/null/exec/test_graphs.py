# SPDX-License-Identifier: MIT
"""Which sizes are recorded, in which order, and which of them runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tokenspeed.base.errors import SetupError
from tokenspeed.exec import graphs
from tokenspeed.exec.graphs import Graphs, Recording, sizes_up_to


def test_sizes_are_exact_where_few_and_four_to_a_doubling_above() -> None:
    assert sizes_up_to(1) == (1,)
    assert sizes_up_to(5) == (1, 2, 3, 4, 5)
    assert sizes_up_to(16) == (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
    assert sizes_up_to(37) == (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 37)
    assert sizes_up_to(256)[-9:] == (64, 80, 96, 112, 128, 160, 192, 224, 256)


@pytest.mark.parametrize("rows_max", [*range(1, 70), 200, 256])
def test_padding_stays_below_a_quarter(rows_max: int) -> None:
    sizes = sizes_up_to(rows_max)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == rows_max
    recorded = Graphs(dict.fromkeys(sizes, Recording(lambda: None, torch.zeros(0))))
    for rows in range(1, rows_max + 1):
        size = recorded.size_for(rows)
        assert size is not None
        assert rows <= size < max(rows + 1, 1.25 * rows)
    assert recorded.size_for(rows_max + 1) is None


def test_without_recordings_no_size_fits() -> None:
    assert Graphs({}).size_for(1) is None
    assert not Graphs({})


class Listed:
    """A recorder that keeps what it is given, in order."""

    def __init__(self) -> None:
        self.work: list[Callable[[], Tensor]] = []

    def record(self, work: Callable[[], Tensor]) -> Recording:
        self.work.append(work)
        return Recording(lambda: None, work())


def test_largest_is_recorded_first_and_each_does_its_own_work() -> None:
    recorder = Listed()
    recorded = graphs.record(recorder, (1, 2, 5), lambda rows: torch.full((rows,), rows))
    assert [len(work()) for work in recorder.work] == [5, 2, 1]
    assert recorded.sizes == (1, 2, 5)
    assert [recorded.run(size).tolist() for size in (1, 2)] == [[1], [2, 2]]


def test_memory_that_runs_out_is_a_setup_error() -> None:
    class Full:
        def record(self, work: Callable[[], Tensor]) -> Recording:
            raise torch.OutOfMemoryError("full")

    with pytest.raises(SetupError, match=r"5 rows.*--cuda-graph-rows-max"):
        graphs.record(Full(), (1, 5), lambda rows: torch.zeros(rows))
