# SPDX-License-Identifier: MIT
"""Copies of KV blocks between the device, the host and the disk, beside the steps.

In: plans, whose copies name block ids of each tier. Out: `Reports`, one result a copy: done, failed, or corrupt (the
source does not hold what was stored). Decides nothing; a block is whose the control plane says it is, so a copy
needs no order with steps: nobody writes its source or touches its target until it is reported.

    device arena --gather--> staging [K, block bytes] --> host rows | slab file
    device arena <--scatter- staging                  <-- host rows | slab file

A thread does them, on a stream of its own where the device has streams, `CHUNK` blocks at a time: a block lies
packed (all layers one after another) everywhere but in the arena, so that a copy over the bus is one run of bytes
a block and the arena's scattered layers are gathered by the device. The host tier is pinned memory on a GPU; on a
CPU, where the arena is host memory itself, it is a slab in shared memory, which outlives a core that crashes. The
disk tier is a slab file. Slabs are always checked by checksum, memory where stamps are kept.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tokenspeed.base.log import get_logger
from tokenspeed.control import CopyResult, Plan, Tier
from tokenspeed.exec.protocol import Reports
from tokenspeed.exec.slab import Record, Slab
from tokenspeed.exec.stamps import CHUNK, Checksums, Stamps

_log = get_logger("exec")
WAIT_S: Final = 0.05
"""How long `reports` waits at most: a message of the front may come meanwhile."""


class HostRows:
    """The host tier as memory: a packed block a row, pinned on a GPU."""

    def __init__(self, blocks: int, block_bytes: int, *, pinned: bool) -> None:
        self.rows = torch.zeros((blocks, block_bytes), dtype=torch.uint8, pin_memory=pinned)
        self.hashes = np.zeros((blocks, 2), np.uint64)
        self.sums = torch.zeros(blocks, dtype=torch.int64, pin_memory=pinned)


Store = HostRows | Slab


@dataclass(frozen=True, slots=True)
class _Batch:
    """Copies of one plan that go the same way, at most `CHUNK`."""

    copy_ids: NDArray[np.uint64]
    source: Tier
    target: Tier
    from_blocks: NDArray[np.int32]
    to_blocks: NDArray[np.int32]
    hashes: NDArray[np.uint64]
    """[n, 4]: hash, hash of the block before it."""
    stamped: torch.Event | None
    """Recorded where the stamps of all sources were made; None where they are made at once."""

    @property
    def names(self) -> NDArray[np.uint64]:
        return self.hashes[:, 1].copy()


class Mover:
    """Carries copies out. `start` and `reports` belong to the loop's thread."""

    def __init__(self, checksums: Checksums, stores: dict[Tier, Store], stamps: Stamps | None) -> None:
        self._checksums = checksums
        self._stores = stores
        self._stamps = stamps
        device = checksums.tensors[0].device
        pinned = device.type == "cuda"
        size = (CHUNK, checksums.block_bytes)
        self._staging = torch.zeros(size, dtype=torch.uint8, device=device)
        self._bounce = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned) if pinned else self._staging
        self._stream = torch.cuda.Stream(device) if pinned else None
        self._asked: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Reports] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="kv-copies")
        self._thread.start()

    def start(self, plan: Plan) -> None:
        """Begin the copies of a plan; returns at once."""
        if len(plan.copy_ids) == 0:
            return
        stamped = None
        if self._stamps is not None and self._stream is not None:
            stamped = torch.Event(self._staging.device)
            stamped.record()
        ways = plan.copy_from_tiers.astype(np.int32) * len(Tier) + plan.copy_to_tiers
        for way in np.unique(ways):
            source, target = divmod(int(way), len(Tier))
            places = np.flatnonzero(ways == way)
            for first in range(0, len(places), CHUNK):
                at = places[first : first + CHUNK]
                batch = _Batch(
                    plan.copy_ids[at],
                    Tier(source),
                    Tier(target),
                    plan.copy_from[at],
                    plan.copy_to[at],
                    plan.copy_hashes.reshape(-1, 4)[at],
                    stamped,
                )
                self._asked.put(batch)

    def reports(self, *, wait: bool) -> Reports | None:
        """What has come to its end since the last call; with `wait`, wait a bounded time for something."""
        parts: list[Reports] = []
        with contextlib.suppress(queue.Empty):
            if wait:
                parts.append(self._done.get(timeout=WAIT_S))
            while True:
                parts.append(self._done.get_nowait())
        if not parts:
            return None
        return Reports(
            np.concatenate([part.copy_ids for part in parts]),
            np.concatenate([part.results for part in parts]),
        )

    def close(self) -> None:
        """Finish what was asked for and end the thread; a host tier in shared memory has no further use."""
        self._asked.put(None)
        self._thread.join()
        for tier, store in self._stores.items():
            if isinstance(store, Slab):
                store.close(remove=tier == Tier.HOST)

    def _run(self) -> None:
        stream = contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with torch.inference_mode(), stream:
            while (batch := self._asked.get()) is not None:
                try:
                    results = self._copy(batch)
                # A full disk, a device out of memory: recompute instead.
                except (OSError, RuntimeError) as error:
                    way = f"{batch.source.name} to {batch.target.name}"
                    _log.warning("%d blocks from %s: %s", len(batch.copy_ids), way, error)
                    results = np.full(len(batch.copy_ids), CopyResult.FAILED, np.uint8)
                self._done.put(Reports(batch.copy_ids, results))

    def _copy(self, batch: _Batch) -> NDArray[np.uint8]:
        """Bring the blocks to the staging, look at them, send those that are right on."""
        count = len(batch.copy_ids)
        if self._stream is not None and batch.stamped is not None:
            self._stream.wait_event(batch.stamped)
        sums, right = self._load(batch)
        results = np.where(right, CopyResult.DONE, CopyResult.CORRUPT).astype(np.uint8)
        if batch.target == Tier.DEVICE:
            self._scatter(batch, sums, right)
        else:
            self._store(batch, sums, right, self._stores[batch.target], count)
        if self._stream is not None:
            self._stream.synchronize()
        return results

    def _load(self, batch: _Batch) -> tuple[torch.Tensor | None, NDArray[np.bool_]]:
        """Fill the staging; the checksums of what is there now, and which blocks are what they should be."""
        count = len(batch.copy_ids)
        staged, hashes = self._staging[:count], batch.hashes[:, :2]
        if batch.source == Tier.DEVICE:
            self._gather(batch.from_blocks)
            needs_sums = self._stamps is not None or isinstance(self._stores[batch.target], Slab)
            sums = self._checksums.of_packed(staged) if needs_sums else None
            if self._stamps is None or sums is None:
                return sums, np.ones(count, np.bool_)
            unlike = self._stamps.unlike(batch.from_blocks, batch.names, sums).cpu().numpy()
            return sums, ~(unlike & self._stamps.chosen(batch.names))
        store = self._stores[batch.source]
        if isinstance(store, Slab):
            return self._load_slab(store, batch)
        at = torch.from_numpy(batch.from_blocks.astype(np.int64))
        for i, row in enumerate(batch.from_blocks.tolist()):
            staged[i].copy_(store.rows[row], non_blocking=True)
        right = (store.hashes[batch.from_blocks] == hashes).all(1)
        if self._stamps is None and not isinstance(self._stores.get(batch.target), Slab):
            return None, right
        sums = self._checksums.of_packed(staged)
        if self._stamps is not None:
            right &= (sums.cpu() == store.sums[at]).numpy()
        return sums, right

    def _load_slab(self, slab: Slab, batch: _Batch) -> tuple[torch.Tensor, NDArray[np.bool_]]:
        count = len(batch.copy_ids)
        right = np.zeros(count, np.bool_)
        expected = torch.zeros(count, dtype=torch.int64)
        for i, slot in enumerate(batch.from_blocks.tolist()):
            record = slab.read(slot, self._bounce[i].numpy())
            right[i] = record is not None and record.hash == batch.hashes[i, :2].tobytes()
            expected[i] = record.checksum if record is not None else 0
        if self._bounce is not self._staging:
            self._staging[:count].copy_(self._bounce[:count], non_blocking=True)
        sums = self._checksums.of_packed(self._staging[:count])
        right &= (sums.cpu() == expected).numpy()
        return sums, right

    def _store(
        self, batch: _Batch, sums: torch.Tensor | None, right: NDArray[np.bool_], store: Store, count: int
    ) -> None:
        """From the staging to a lower tier."""
        if isinstance(store, HostRows):
            for i in np.flatnonzero(right).tolist():
                row = int(batch.to_blocks[i])
                store.rows[row].copy_(self._staging[i], non_blocking=True)
                store.hashes[row] = batch.hashes[i, :2]
            if sums is not None:
                store.sums[torch.from_numpy(batch.to_blocks.astype(np.int64))] = sums.cpu()
            return
        assert sums is not None, "what goes into a slab has a checksum"
        if self._bounce is not self._staging:
            self._bounce[:count].copy_(self._staging[:count])
        values = sums.tolist()
        for i in np.flatnonzero(right).tolist():
            hash_, parent = batch.hashes[i, :2].tobytes(), batch.hashes[i, 2:].tobytes()
            store.write(int(batch.to_blocks[i]), self._bounce[i].numpy(), Record(hash_, parent, values[i]))

    def _gather(self, blocks: NDArray[np.int32]) -> None:
        at = self._ids(blocks)
        begin = 0
        for tensor, size in zip(self._checksums.tensors, self._checksums.sizes, strict=True):
            packed = tensor[at].flatten(1).view(torch.uint8)
            self._staging[: len(blocks), begin : begin + size].copy_(packed)
            begin += size

    def _scatter(self, batch: _Batch, sums: torch.Tensor | None, right: NDArray[np.bool_]) -> None:
        if not right.any():
            return
        blocks = batch.to_blocks[right]
        at = self._ids(blocks)
        kept = self._ids(np.flatnonzero(right).astype(np.int32))
        begin = 0
        for tensor, size in zip(self._checksums.tensors, self._checksums.sizes, strict=True):
            packed = self._staging[kept, begin : begin + size].contiguous().view(tensor.dtype)
            tensor[at] = packed.view(len(blocks), *tensor.shape[1:])
            begin += size
        if self._stamps is not None and sums is not None:
            self._stamps.put(blocks, batch.names[right], sums[kept.to(sums.device)])

    def _ids(self, blocks: NDArray[np.int32]) -> torch.Tensor:
        return torch.from_numpy(blocks.astype(np.int64)).to(self._staging.device)


def adoptable(stores: dict[Tier, Store]) -> Sequence[tuple[Tier, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """What slabs still hold, for `Scheduler.adopt`."""
    return [(tier, store.scan()) for tier, store in stores.items() if isinstance(store, Slab)]
