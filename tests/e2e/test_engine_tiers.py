# SPDX-License-Identifier: MIT
"""The engine with tiers and stamps says what it says without: KV that went to the host or the disk, outlived the
core, or was found corrupt changes no token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenspeed.base import config
from tokenspeed.base.clock import MonotonicClock
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.engine import storage, wire
from tokenspeed.engine.boot import boot
from tokenspeed.engine.desk import Desk
from tokenspeed.engine.loop import Loop

CONTEXT = 160
PROMPTS = [np.random.default_rng(n).integers(5, 400, CONTEXT - 32).tolist() for n in range(6)]


class Engine:
    """A core over the bundled model with room for two of the prompts; the test is the front."""

    def __init__(self, **options: Any) -> None:
        defaults: dict[str, Any] = {
            "block_tokens": 8,
            "max_model_len": CONTEXT,
            "rows_max": 2,
            "threads": 1,
            "kv_cache_bytes": 3 << 20,
        }
        self.core = boot(config.build(**{**defaults, **options}))
        self.said: dict[int, list[int]] = {}
        self.cached: dict[int, int] = {}
        self._open: set[int] = set()
        self._inbox: list[wire.Request] = []
        desk = Desk(self.core.scheduler, vocab_size=self.core.model.vocab)
        clock, overlap = MonotonicClock(), self.core.resolved.overlap
        self.loop = Loop(desk, self.core.executor, self, self, clock, overlap=overlap)

    def drain(self, *, wait: bool) -> list[wire.Request]:
        messages, self._inbox = self._inbox, []
        return messages

    def send(self, report: wire.Report) -> None:
        if isinstance(report, wire.Deltas):
            for delta in report.items:
                self.said[delta.request_id] += wire.ids_array(delta.ids).tolist()
                if delta.cached_tokens is not None:
                    self.cached[delta.request_id] = delta.cached_tokens
                if delta.finish is not None:
                    self._open.discard(delta.request_id)

    def answer(self, prompt: list[int]) -> tuple[list[int], int]:
        """Its answer, and how many of its tokens were found; KV has come to rest."""
        request_id = len(self.said) + 1
        self.said[request_id] = []
        self._open.add(request_id)
        params = SamplingParams(temperature=0.0, tokens_max=12, seed=1)
        self._inbox.append(wire.Generate(request_id, wire.ids_bytes(np.array(prompt)), params))
        while self._open:
            self.loop.turn()
        self.loop.turn()
        while self.loop.busy:
            self.loop.turn()
        self.core.scheduler.check()
        return self.said[request_id], self.cached[request_id]

    def close(self, *, crash: bool = False) -> None:
        if crash:  # as when the process dies: files stay, locks go
            for store in self.core.executor._mover._stores.values():
                store.close()
        else:
            self.core.executor.close()


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    engine = Engine(kv_cache_bytes=32 << 20)
    return [engine.answer(prompt)[0] for prompt in PROMPTS]


@pytest.fixture(autouse=True)
def own_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(storage, "SHARED_MEMORY", folder)


@pytest.mark.parametrize("integrity", ["off", "full"])
@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize("tiers", ["host", "disk", "both"])
def test_what_was_evicted_comes_back_from_below(
    tiers: str, overlap: str, integrity: str, expected: list[list[int]], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"overlap": overlap, "kv_integrity": integrity}
    if tiers != "disk":
        options["host_kv_bytes"] = (4 << 20) if tiers == "both" else (32 << 20)
    if tiers != "host":
        options |= {"disk_kv_dir": str(tmp_path / "disk"), "disk_kv_bytes": 32 << 20}
    engine = Engine(**options)
    assert engine.core.resolved.kv_tokens < 3 * CONTEXT
    for prompt, said in zip(PROMPTS, expected, strict=True):
        assert engine.answer(prompt) == (said, 0)
    stats = engine.core.scheduler.stats()
    assert stats.evictions > 0
    for prompt, said in zip(PROMPTS, expected, strict=True):
        assert engine.answer(prompt) == (said, (len(prompt) - 1) // 8 * 8)
    stats = engine.core.scheduler.stats()
    assert stats.blocks_promoted > 0
    assert (stats.copies_failed, stats.copies_corrupt, stats.blocks_corrupt) == (0, 0, 0)
    engine.close()
    assert not list((tmp_path / "shm").iterdir())


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_kv_outlives_a_core(tier: str, expected: list[list[int]], tmp_path: Path) -> None:
    options: dict[str, Any] = {"host_kv_bytes": 32 << 20}
    if tier == "disk":
        options = {"disk_kv_dir": str(tmp_path / "disk"), "disk_kv_bytes": 32 << 20}
    engine = Engine(**options)
    for prompt in PROMPTS:
        engine.answer(prompt)
    engine.close(crash=tier == "host")
    again = Engine(**options)
    for prompt, said in zip(PROMPTS, expected, strict=True):
        assert again.answer(prompt) == (said, (len(prompt) - 1) // 8 * 8)
    again.close()


def test_a_damaged_disk_is_recomputed(expected: list[list[int]], tmp_path: Path) -> None:
    options = {"disk_kv_dir": str(tmp_path / "disk"), "disk_kv_bytes": 32 << 20}
    engine = Engine(**options)
    engine.answer(PROMPTS[0])
    engine.close()
    (path,) = (tmp_path / "disk").iterdir()
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 2, len(data), 4096):
        data[at] ^= 1
    for at in range(200_000, len(data) // 2, 4096):
        data[at] ^= 1
    path.write_bytes(data)
    again = Engine(**options)
    assert again.answer(PROMPTS[0])[0] == expected[0]
    assert again.core.scheduler.stats().copies_corrupt > 0
    again.close()


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_a_corrupt_block_is_found_before_a_token_depends_on_it(
    overlap: str, expected: list[list[int]]
) -> None:
    engine = Engine(kv_integrity="full", overlap=overlap, kv_cache_bytes=8 << 20)
    engine.answer(PROMPTS[0])
    arena = engine.core.executor._arena
    written = [block for block in range(arena.blocks) if arena.tensors()[0][block].any()]
    for tensor in arena.tensors():
        tensor[written[3]].flatten()[5] += 1.0
    assert engine.answer(PROMPTS[0])[0] == expected[0]
    stats = engine.core.scheduler.stats()
    assert (stats.blocks_corrupt, stats.blocks_quarantined) == (1, 1)
    assert engine.answer(PROMPTS[0]) == (expected[0], (len(PROMPTS[0]) - 1) // 8 * 8)
    engine.close()
