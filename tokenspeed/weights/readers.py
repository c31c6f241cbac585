# SPDX-License-Identifier: MIT
"""Threads that bring pieces of a checkpoint into the tensors they belong to.

In: `Piece`s, in the order in which they are wanted. Out: filled tensors on the model's device; `join` waits
for them. For a host tensor a piece is read straight into its place. For a CUDA tensor it is read into a pinned
buffer and copied over by the reader's own stream while the next piece is read into a second buffer:

    file --preadv--> pinned A --stream--> [decode on the device] --> a slice of the parameter
         --preadv--> pinned B ...                                    (stacked experts: expert e's slice)

Nothing is allocated on the device but what decoding needs for one piece a reader. The caller bounds how far
reading runs ahead. Used by `load`; knows nothing of layers and parameters.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self

import torch

from tokenspeed.weights.checkpoint import Checkpoint, Region

READERS_MAX: Final = 8  # more gained nothing: docs/log/0005
_ALIGNED_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """Fill `target` with what `decode` makes of `regions`; with one region, with its numbers as they are."""

    target: torch.Tensor
    regions: tuple[Region, ...]
    decode: Callable[[Sequence[torch.Tensor]], torch.Tensor]


class _Lane(Protocol):
    """What one reader works with."""

    def fill(self, piece: Piece, ready: torch.cuda.Event | None) -> torch.cuda.Event | None:
        """Fill a piece whose memory is free after `ready`; the event is when it is there, None for now."""
        ...

    def close(self) -> None:
        """Wait for what is under way."""
        ...


class _HostLane:
    """Reads into host memory."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def fill(self, piece: Piece, ready: torch.cuda.Event | None) -> None:
        del ready
        target, checkpoint = piece.target, self._checkpoint
        if len(piece.regions) == 1 and target.dtype == checkpoint.torch_dtype(piece.regions[0].name):
            checkpoint.read_into(piece.regions[0], target)
            return
        value = piece.decode([checkpoint.read(region) for region in piece.regions])
        target.copy_(value.view(target.shape))

    def close(self) -> None:
        """Nothing is ever under way."""


@dataclass(slots=True)
class _Staging:
    """A pinned buffer, and when the copy that last read it was done."""

    memory: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    read: torch.cuda.Event | None = None

    def take(self, sizes_bytes: Sequence[int]) -> list[torch.Tensor]:
        """Wait until the buffer is free, grow it if need be, and cut it up."""
        if self.read is not None:
            self.read.synchronize()
        starts = [0]
        for size in sizes_bytes:
            starts.append(starts[-1] + -(-size // _ALIGNED_BYTES) * _ALIGNED_BYTES)
        if self.memory.numel() < starts[-1]:
            self.memory = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
        return [self.memory[start : start + size] for start, size in zip(starts, sizes_bytes, strict=False)]


class _CudaLane:
    """Reads into pinned memory, copies and decodes on a stream of its own."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._checkpoint = checkpoint
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._now, self._next = _Staging(), _Staging()

    def fill(self, piece: Piece, ready: torch.cuda.Event | None) -> torch.cuda.Event:
        staging, self._now, self._next = self._now, self._next, self._now
        parts = self._read(staging, piece.regions)
        with torch.cuda.stream(self._stream):
            if ready is not None:
                self._stream.wait_event(ready)
            if len(parts) == 1:
                piece.target.copy_(parts[0].view(piece.target.shape), non_blocking=True)
            else:
                moved = [part.to(self._device, non_blocking=True) for part in parts]
                piece.target.copy_(piece.decode(moved).view(piece.target.shape))
        staging.read = _recorded(self._stream)
        return staging.read

    def _read(self, staging: _Staging, regions: Sequence[Region]) -> list[torch.Tensor]:
        checkpoint = self._checkpoint
        buffers = staging.take([checkpoint.bytes(region) for region in regions])
        parts: list[torch.Tensor] = []
        for region, buffer in zip(regions, buffers, strict=True):
            part = buffer.view(checkpoint.torch_dtype(region.name)).view(region.shape)
            checkpoint.read_into(region, part)
            parts.append(part)
        return parts

    def close(self) -> None:
        self._stream.synchronize()


class Readers:
    """A pool of readers of one checkpoint for one device. Use it in a `with`; an error of a piece is raised by
    `join`.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, count: int | None = None) -> None:
        self._device = device
        count = count or min(READERS_MAX, cores())
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="weights")
        self._lanes: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        self._all: list[_Lane] = []
        for _ in range(count):
            lane = _CudaLane(checkpoint, device) if device.type == "cuda" else _HostLane(checkpoint)
            self._all.append(lane)
            self._lanes.put(lane)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        for lane in self._all:
            lane.close()

    def start(self, pieces: Iterable[Piece]) -> list[Future[torch.cuda.Event | None]]:
        """Begin to fill pieces whose targets the current stream has just allocated."""
        on_cuda = self._device.type == "cuda"
        ready = _recorded(torch.cuda.current_stream(self._device)) if on_cuda else None
        return [self._pool.submit(self._fill, [piece], ready) for piece in pieces]

    def join(self, jobs: Iterable[Future[torch.cuda.Event | None]]) -> None:
        """Wait until pieces are there, for the host and for the current stream."""
        for job in jobs:
            event = job.result()
            if event is not None:
                torch.cuda.current_stream(self._device).wait_event(event)

    def _fill(self, handed: list[Piece], ready: torch.cuda.Event | None) -> torch.cuda.Event | None:
        """Fill the piece handed over, and take it: a job that is done keeps no tensor alive."""
        lane = self._lanes.get()  # as many as threads: never waits
        try:
            return lane.fill(handed.pop(), ready)
        finally:
            self._lanes.put(lane)


def _recorded(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record(stream)
    return event


def cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
