# SPDX-License-Identifier: MIT
"""How long is a decode step, from one row to many and from short contexts to long ones? How fast is a cold prompt?

    python benchmarks/decode_grid.py MODEL --out FILE [--grid 1x2048,16x51200] [--shared 16x51200:45056]
        [--prefills 8192,51200] [--profile] [engine options, as of `tokenspeed serve`]

In: a checkpoint directory; with `--load-format dummy` its config.json is enough. Out: one JSON with a row per cell.
The real executor runs (graphs, overlap, sampling, copies to the host); the plans are made here and not by the control
plane, over blocks of random KV from all over the arena, because computing 32 contexts of 51,200 tokens would take
longer than everything else; what a step costs does not depend on the numbers in KV. `bench engine` measures the same
with real prompts and the real control plane, in its time. Rows of a `--shared` cell begin with the same blocks.
With `--profile` every row also says what its kernels took, by name, in steps of their own after those that were timed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from tokenspeed.base.flags import Parser, add_options, config_of
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.bench.provenance import commit, machine
from tokenspeed.control import Plan
from tokenspeed.engine.boot import Core, boot
from tokenspeed.kernels.fp8 import Heads, Latents

GREEDY = SamplingParams(temperature=0.0, tokens_max=1 << 30, seed=0)
WARM_STEPS = 6
PROFILED_STEPS = 4
NONE = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Cell:
    """`rows` that decode over `context` tokens each, of which the first `shared` are the same."""

    rows: int
    context: int
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What an executor reads of a `control.Plan`; the rows of a step are those of its first slots."""

    step: int
    starts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    tokens: NDArray[np.int32]
    sampled: NDArray[np.uint8]
    table_slots: NDArray[np.int32] = field(default_factory=NONE.copy)
    table_indexes: NDArray[np.int32] = field(default_factory=NONE.copy)
    table_blocks: NDArray[np.int32] = field(default_factory=NONE.copy)
    group_rows: NDArray[np.int32] = field(default_factory=NONE.copy)
    group_sizes: NDArray[np.int32] = field(default_factory=NONE.copy)
    group_blocks: NDArray[np.int32] = field(default_factory=NONE.copy)

    @property
    def rows(self) -> int:
        return len(self.starts)

    @property
    def decode_rows(self) -> int:
        return self.rows if len(self.tokens) == self.rows else 0

    @property
    def samples(self) -> int:
        return int(self.sampled.sum())

    @property
    def slots(self) -> NDArray[np.int32]:
        return np.arange(self.rows, dtype=np.int32)


class Grid:
    """One core and the cells that are timed on it."""

    def __init__(self, core: Core, *, steps: int, repeats: int, seed: int, profile: bool) -> None:
        self._executor = core.executor
        self._resolved = core.resolved
        self._vocab = core.model.vocab
        self._random = np.random.default_rng(seed)
        self._steps, self._repeats, self._profile = steps, repeats, profile
        self._step = 0

    def decode(self, cell: Cell) -> dict[str, Any]:
        """Time steps as the loop runs them: the next is launched before the last is read."""
        tokens = WARM_STEPS + (self._steps + 1) * (self._repeats + 1) + PROFILED_STEPS + 2
        tables = self._tables(cell, cell.context + tokens)
        self._bind(cell.rows)
        starts = np.full(cell.rows, cell.context, np.int32)
        groups = self._groups(cell)

        def launch(first: bool = False) -> Any:
            ids = self._random.integers(0, self._vocab, cell.rows) if first else np.full(cell.rows, -1)
            ones = np.ones(cell.rows, np.int32)
            made = self._plan(starts, ones, ids, ones, deltas=tables if first else None, groups=groups)
            np.add(starts, 1, out=starts)
            return self._executor.launch(made)

        flight = launch(first=True)
        step_ms: list[float] = []
        launch_ms: list[float] = []
        for repeat in range(self._repeats + 1):
            for _ in range(WARM_STEPS if repeat == 0 else 0):
                flight, done = launch(), flight
                self._executor.retire(done)
            wait()
            begun_s, host_s = time.perf_counter(), 0.0
            for _ in range(self._steps):
                at_s = time.perf_counter()
                flight, done = launch(), flight
                host_s += time.perf_counter() - at_s
                self._executor.retire(done)
            wait()
            step_ms.append((time.perf_counter() - begun_s) / self._steps * 1e3)
            launch_ms.append(host_s / self._steps * 1e3)
        self._executor.retire(flight)

        def again() -> None:
            for _ in range(PROFILED_STEPS):
                self._executor.retire(launch())

        median = statistics.median(step_ms[1:])
        return {
            "kind": "decode", **asdict(cell), "step_ms": median, "tokens_per_s": cell.rows / median * 1e3,
            "launch_ms": statistics.median(launch_ms[1:]), "steps_ms": step_ms[1:],
            "kernels": kernels_of(again, PROFILED_STEPS) if self._profile else None,
        }  # fmt: skip

    def prefill(self, tokens: int) -> dict[str, Any]:
        """Time one prompt that nothing is known of, chunk after chunk."""
        chunk = self._resolved.prefill_tokens_max
        tables = self._tables(Cell(1, tokens), tokens)
        ids = self._random.integers(0, self._vocab, tokens)
        times_s: list[float] = []

        def once() -> None:
            flight = None
            for start in range(0, tokens, chunk):
                count = min(chunk, tokens - start)
                plan = self._plan(
                    np.array([start]), np.array([count]), ids[start : start + count],
                    np.array([start + count == tokens]), deltas=tables if start == 0 else None,
                )  # fmt: skip
                flight, done = self._executor.launch(plan), flight
                if done is not None:
                    self._executor.retire(done)
            self._executor.retire(flight)

        for _ in range(self._repeats + 1):
            self._bind(1)
            wait()
            begun_s = time.perf_counter()
            once()
            times_s.append(time.perf_counter() - begun_s)
        median = statistics.median(times_s[1:])
        return {
            "kind": "prefill", "tokens": tokens, "chunk": chunk, "seconds": median,
            "tokens_per_s": tokens / median, "times_s": times_s[1:],
            "kernels": kernels_of(once, 1) if self._profile else None,
        }  # fmt: skip

    def _bind(self, rows: int) -> None:
        for slot in range(rows):
            self._executor.bind(slot, GREEDY, NONE, NONE)

    def _tables(self, cell: Cell, tokens: int) -> NDArray[np.int32]:
        """[rows, blocks] drawn from all over the arena."""
        size = self._resolved.block_tokens
        width, shared = -(-tokens // size), cell.shared // size
        wanted = shared + cell.rows * (width - shared)
        if wanted > self._resolved.blocks_total:
            raise ValueError(f"{cell} takes {wanted} blocks, there are {self._resolved.blocks_total}")
        blocks = self._random.permutation(self._resolved.blocks_total)[:wanted].astype(np.int32)
        own = blocks[shared:].reshape(cell.rows, width - shared)
        return np.hstack([np.broadcast_to(blocks[:shared], (cell.rows, shared)), own])

    def _groups(self, cell: Cell) -> dict[str, NDArray[np.int32]]:
        if not cell.shared:
            return {}
        return {
            "group_rows": np.arange(cell.rows, dtype=np.int32),
            "group_sizes": np.array([cell.rows], np.int32),
            "group_blocks": np.array([cell.shared // self._resolved.block_tokens], np.int32),
        }

    def _plan(
        self,
        starts: NDArray[Any],
        lengths: NDArray[Any],
        tokens: NDArray[Any],
        sampled: NDArray[Any],
        *,
        deltas: NDArray[np.int32] | None,
        groups: dict[str, NDArray[np.int32]] | None = None,
    ) -> Plan:
        self._step += 1
        changes: dict[str, NDArray[np.int32]] = {}
        if deltas is not None:
            rows, width = deltas.shape
            changes = {
                "table_slots": np.repeat(np.arange(rows, dtype=np.int32), width),
                "table_indexes": np.tile(np.arange(width, dtype=np.int32), rows),
                "table_blocks": deltas.reshape(-1),
            }
        arrays = (starts.astype(np.int32), lengths.astype(np.int32), tokens.astype(np.int32))
        made = Step(self._step, *arrays, sampled.astype(np.uint8), **changes, **(groups or {}))
        return cast(Plan, made)


def wait() -> None:
    """Until the device has nothing left to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def kernels_of(run: Callable[[], None], steps: int) -> list[dict[str, Any]]:
    """What the device did in `run`, which makes `steps` steps: launches and microseconds a step, by kernel."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        wait()
    found = [
        {"name": row.key, "launches": row.count / steps, "us": row.self_device_time_total / steps}
        for row in profiler.key_averages()
        if row.self_device_time_total
    ]
    return sorted(found, key=lambda row: -row["us"])


def fill(core: Core) -> None:
    """Random numbers into all KV: a zero can cost less than a number."""
    for layer in vars(core.executor)["_arena"].layers:
        for part in layer if type(layer) is tuple else (layer,):
            if isinstance(part, Latents | Heads):
                randomise(part.values, 100.0)
                part.scale.uniform_(0.005, 0.02)
            if isinstance(part, Latents):
                randomise(part.rope)
            if isinstance(part, torch.Tensor):
                randomise(part)


def randomise(plane: torch.Tensor, size: float = 1.0) -> None:
    """Normal numbers of this size, some blocks at a time."""
    for start in range(0, len(plane), 4096):
        blocks = plane[start : start + 4096]
        blocks.copy_(torch.randn(blocks.shape, device=plane.device).mul_(size))


def cells(text: str, shared: str) -> list[Cell]:
    """Read "16x51200,..." and "16x51200:45056,..."."""
    found = [Cell(*map(int, word.split("x"))) for word in text.split(",") if word]
    for word in filter(None, shared.split(",")):
        cell, _, tokens = word.partition(":")
        found.append(Cell(*map(int, cell.split("x")), shared=int(tokens)))
    return found


def main(argv: list[str]) -> None:
    made = Parser("decode-grid", (__doc__ or "").split("\n")[0])
    made.add_argument("--grid", default="1x2048,1x51200,4x51200,8x51200,16x51200,32x51200,64x8192")
    made.add_argument("--shared", default="16x51200:45056")
    made.add_argument("--prefills", default="8192,51200")
    made.add_argument("--steps", type=int, default=24)
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--profile", action="store_true")
    made.add_argument("--commit", default="", help="where the tree is not a repository")
    made.add_argument("--out", type=Path, required=True)
    add_options(made, ("model", "cache", "scheduler", "device"))
    options = made.parse_args(argv)
    if options.profile and not torch.cuda.is_available():
        made.error("--profile asks the GPU what it did, and there is none: leave it out")
    grid = cells(options.grid, options.shared)
    prefills = [int(word) for word in options.prefills.split(",") if word]
    longest = max([cell.context for cell in grid] + prefills) + 512
    needs = {"max_model_len": longest, "rows_max": max([cell.rows for cell in grid], default=1)}
    begun_s = time.perf_counter()
    core = boot(config_of(options, prefer={"log_level": "warning", **needs}))
    record: dict[str, Any] = {
        "benchmark": "decode_grid", "commit": options.commit or commit(), "machine": asdict(machine()),
        "device": core.device, "torch": str(torch.__version__), "command": argv,
        "boot_s": time.perf_counter() - begun_s, "resolved": [list(choice) for choice in core.resolved.choices],
        "rows": [],
    }  # fmt: skip
    fill(core)
    timing = Grid(core, steps=options.steps, repeats=options.repeats, seed=0, profile=options.profile)
    for cell in grid:
        row = timing.decode(cell)
        record["rows"].append(row)
        print(
            f"{cell.rows:>3} x {cell.context:>6} ({cell.shared} shared): {row['step_ms']:.3f} ms", flush=True
        )
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    for tokens in prefills:
        row = timing.prefill(tokens)
        record["rows"].append(row)
        print(f"prefill {tokens}: {row['tokens_per_s']:.0f} tok/s", flush=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
