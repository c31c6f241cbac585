# SPDX-License-Identifier: MIT
"""Decode steps as recorded graphs: one for each of a few numbers of rows.

In: what a step of so many rows does, as a function that only launches. Out: `Graphs`, which run the recording
of the least size that holds a step's rows; the rows too many are padding. Recorded once, largest first and
from one pool, so that smaller ones live in the memory of the largest. Nothing here lays a step out, or knows
what is in it.

    rows      1  2  3 .. 8    9-10  11-12  13-14  15-16    17-20  21-24 ..     rows_max
    recorded  1  2  3 .. 8      10     12     14     16       20     24 ..     rows_max
"""

from __future__ import annotations

import bisect
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import torch
from torch import Tensor

from tokenspeed.base.errors import SetupError

EXACT_MAX: Final = 8
"""Up to this many rows each number has its own graph; above, each doubling has four."""


def sizes_up_to(rows_max: int) -> tuple[int, ...]:
    """The numbers of rows that are recorded, rising, the last `rows_max`."""
    sizes = list(range(1, min(rows_max, EXACT_MAX) + 1))
    while sizes[-1] < rows_max:
        doubling = 1 << (sizes[-1].bit_length() - 1)
        sizes.append(min(sizes[-1] + doubling // 4, rows_max))
    return tuple(sizes)


def sharing_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """Those of `sizes` that are recorded once more for rows that share blocks: fewer, for few steps do."""
    return tuple(size for size in sizes if size > 1 and (size & (size - 1) == 0 or size == max(sizes)))


class WaitsError(Exception):
    """Work that cannot be recorded, because somewhere it waits for the device."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One step's work, to be run again; its result lies where it lay."""

    run: Callable[[], None]
    logits: Tensor
    """[rows, V]; valid until another recording runs."""


class Recorder(Protocol):
    """What records: a GPU's graphs, or a test's double."""

    def record(self, work: Callable[[], Tensor]) -> Recording:
        """Run `work` and keep it. Raises `WaitsError`."""
        ...


class GraphRecorder:
    """CUDA graphs of one device that share a pool; they run one at a time, in the order of the stream."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Tensor]) -> Recording:
        self._rehearse(work)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            logits = work()
        return Recording(graph.replay, _Place.of(logits))

    def _rehearse(self, work: Callable[[], Tensor]) -> None:
        """Run it twice as it is: to compile and to let libraries take what they keep, then to see it wait."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
            self._stream.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                work()
            except RuntimeError as error:
                if "synchronizing" not in str(error):
                    raise
                frame = traceback.extract_tb(error.__traceback__)[-1]
                raise WaitsError(f"{frame.filename}:{frame.lineno}, in {frame.name}") from error
            finally:
                torch.cuda.set_sync_debug_mode("default")
        self._stream.synchronize()


class _Place:
    """The memory of a tensor that lies in a graph's pool, without owning it.

    The pool stays as long as its graphs do. A tensor that owned its part would keep it from the graphs that are
    recorded after it: each size would hold logits of its own.
    """

    def __init__(self, tensor: Tensor) -> None:
        assert tensor.is_contiguous()
        assert tensor.dtype == torch.float32
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "typestr": "<f4",
            "data": (tensor.data_ptr(), False),
            "version": 3,
            "strides": None,
        }

    @classmethod
    def of(cls, tensor: Tensor) -> Tensor:
        """The same numbers at the same address."""
        return torch.as_tensor(cls(tensor), device=tensor.device)


class Graphs:
    """The recordings of one executor, by number of rows; falsy where there are none."""

    def __init__(self, recordings: Mapping[int, Recording]) -> None:
        self._recordings = dict(recordings)
        self._sizes = sorted(recordings)

    def __bool__(self) -> bool:
        return bool(self._sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self._sizes)

    def size_for(self, rows: int) -> int | None:
        """The least size that holds `rows`; None where none does."""
        at = bisect.bisect_left(self._sizes, rows)
        return self._sizes[at] if at < len(self._sizes) else None

    def run(self, size: int) -> Tensor:
        """Run the recording of `size` rows; its logits [size, V], valid until the next."""
        recording = self._recordings[size]
        recording.run()
        return recording.logits


def record(recorder: Recorder, sizes: Sequence[int], work: Callable[[int], Tensor]) -> Graphs:
    """Record `work(rows)` for every size, largest first. Raises `WaitsError`, `SetupError`."""
    recordings: dict[int, Recording] = {}
    for size in sorted(sizes, reverse=True):
        try:
            recordings[size] = recorder.record(partial(work, size))
        except torch.OutOfMemoryError as error:
            raise SetupError(
                f"no memory left to record a decode step of {size} rows; give a smaller --cuda-graph-rows-max "
                "or --gpu-memory-share, or --enforce-eager"
            ) from error
    return Graphs(recordings)
