# SPDX-License-Identifier: MIT
"""Blocks go down and come up bit for bit, through memory, shared memory and disk; what is wrong is said to be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenspeed.control import CopyResult, Tier
from tokenspeed.exec.arena import Arena
from tokenspeed.exec.slab import Layout, Slab
from tokenspeed.exec.stamps import Checksums, Stamps
from tokenspeed.exec.tiers import HostRows, Mover, Store
from tokenspeed.layers.kv import GQA

BLOCKS = 40
DONE, FAILED, CORRUPT = CopyResult.DONE, CopyResult.FAILED, CopyResult.CORRUPT


@dataclass
class HandPlan:
    """The part of a plan that a mover reads."""

    copy_ids: np.ndarray
    copy_from_tiers: np.ndarray
    copy_to_tiers: np.ndarray
    copy_from: np.ndarray
    copy_to: np.ndarray
    copy_hashes: np.ndarray


def hash_of(number: int) -> tuple[int, int]:
    return (number + 1) * 7919, (number + 1) * 104729


class Stage:
    """An arena of random KV over a host and a disk tier."""

    def __init__(self, host: str, folder: Path, *, stamps: bool) -> None:
        self.arena = Arena(
            [GQA(2, 4)] * 3, blocks=BLOCKS, block_tokens=4, dtype=torch.bfloat16, device=torch.device("cpu")
        )
        generator = torch.Generator().manual_seed(3)
        for tensor in self.arena.tensors():
            tensor.copy_(torch.randn(tensor.shape, generator=generator).bfloat16())
        sums = Checksums(self.arena)
        self.layout = Layout(BLOCKS, sums.block_bytes, b"f" * 32)
        self.disk = Slab(folder / "disk", self.layout, b"k" * 16)
        slab = Slab(folder / "host", self.layout, b"k" * 16) if host == "slab" else None
        self.host: Store = slab or HostRows(BLOCKS, sums.block_bytes, pinned=False)
        self.stamps = Stamps(sums, BLOCKS, sampled=False, epoch=1) if stamps else None
        if self.stamps is not None:
            blocks = np.arange(BLOCKS, dtype=np.int32)
            self.stamps.freeze(blocks, np.array([hash_of(n)[1] for n in blocks.tolist()], np.uint64))
        self.mover = Mover(sums, {Tier.HOST: self.host, Tier.DISK: self.disk}, self.stamps)
        self.copies = 0

    def copy(self, source: Tier, target: Tier, moves: list[tuple[int, int, int]]) -> list[CopyResult]:
        """Copy (block, to block, number that names its history); results in that order."""
        ids = np.arange(self.copies, self.copies + len(moves), dtype=np.uint64)
        self.copies += len(moves)
        count = len(moves)
        self.mover.start(
            HandPlan(
                ids,
                np.full(count, source, np.uint8),
                np.full(count, target, np.uint8),
                np.array([move[0] for move in moves], np.int32),
                np.array([move[1] for move in moves], np.int32),
                np.array([[*hash_of(n), *hash_of(n - 1)] for _, _, n in moves], np.uint64).reshape(-1),
            )
        )
        results: dict[int, CopyResult] = {}
        while len(results) < count:
            reports = self.mover.reports(wait=True)
            if reports is not None:
                pairs = zip(reports.copy_ids.tolist(), reports.results.tolist(), strict=True)
                results.update({copy: CopyResult(result) for copy, result in pairs})
        return [results[copy] for copy in ids.tolist()]

    def content(self, block: int) -> list[torch.Tensor]:
        return [tensor[block].clone() for tensor in self.arena.tensors()]

    def wipe(self) -> None:
        for tensor in self.arena.tensors():
            tensor.zero_()


@pytest.fixture(params=["rows", "slab"])
def host(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[False, True], ids=["", "stamps"])
def stage(request: pytest.FixtureRequest, host: str, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(host, tmp_path, stamps=request.param)
    yield made
    made.mover.close()


def test_what_comes_back_is_what_went(stage: Stage) -> None:
    before = [stage.content(block) for block in range(BLOCKS)]
    moves = [(block, (block * 7) % BLOCKS, block) for block in range(BLOCKS)]
    assert stage.copy(Tier.DEVICE, Tier.HOST, moves) == [DONE] * BLOCKS
    below = [(host, BLOCKS - 1 - host, number) for _, host, number in moves]
    assert stage.copy(Tier.HOST, Tier.DISK, below) == [DONE] * BLOCKS
    for source, places in ((Tier.HOST, moves), (Tier.DISK, below)):
        stage.wipe()
        up = [(place, (place + 3) % BLOCKS, number) for _, place, number in places]
        assert stage.copy(source, Tier.DEVICE, up) == [DONE] * BLOCKS
        for _, to, number in up:
            for got, sent in zip(stage.content(to), before[number], strict=True):
                assert torch.equal(got, sent)


def test_a_block_of_another_history_is_corrupt(stage: Stage) -> None:
    assert stage.copy(Tier.DEVICE, Tier.HOST, [(0, 5, 0), (1, 6, 1)]) == [DONE, DONE]
    untouched = stage.content(9)
    assert stage.copy(Tier.HOST, Tier.DEVICE, [(5, 9, 1), (6, 10, 1), (7, 11, 2)]) == [CORRUPT, DONE, CORRUPT]
    assert all(torch.equal(a, b) for a, b in zip(stage.content(9), untouched, strict=True))


def test_a_flipped_bit_below_is_corrupt(stage: Stage) -> None:
    assert stage.copy(Tier.DEVICE, Tier.HOST, [(0, 5, 0)]) == [DONE]
    assert stage.copy(Tier.HOST, Tier.DISK, [(5, 2, 0)]) == [DONE]
    with open(stage.disk.path, "r+b") as file:
        file.seek(stage.layout.payload_at + 2 * stage.layout.block_bytes + 17)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 8]))
    assert stage.copy(Tier.DISK, Tier.DEVICE, [(2, 20, 0)]) == [CORRUPT]
    if isinstance(stage.host, HostRows) and stage.stamps is not None:
        stage.host.rows[5, 3] ^= 1
        assert stage.copy(Tier.HOST, Tier.DEVICE, [(5, 21, 0)]) == [CORRUPT]


def test_a_flipped_bit_on_the_device_does_not_go_down(tmp_path: Path, host: str) -> None:
    stage = Stage(host, tmp_path, stamps=True)
    stage.arena.tensors()[1][3].flatten()[2] += 1
    moves = [(block, block, block) for block in range(6)]
    assert stage.copy(Tier.DEVICE, Tier.HOST, moves) == [DONE] * 3 + [CORRUPT] + [DONE] * 2
    stage.mover.close()


def test_a_disk_that_fails_fails_the_copies_alone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage.disk, "write", full)
    assert stage.copy(Tier.DEVICE, Tier.HOST, [(0, 5, 0)]) == [DONE]
    assert stage.copy(Tier.HOST, Tier.DISK, [(5, 2, 0)]) == [FAILED]
    monkeypatch.undo()
    assert stage.copy(Tier.HOST, Tier.DISK, [(5, 2, 0)]) == [DONE]


def test_nothing_asked_nothing_reported(stage: Stage) -> None:
    assert stage.mover.reports(wait=False) is None
