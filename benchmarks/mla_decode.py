# SPDX-License-Identifier: MIT
"""How near is MLA decode to what the GPU can do, and how does it stand to its peers there?

    python benchmarks/mla_decode.py [--only 16/1/4/8k] [--kernel NAME] [--json FILE]

108 cells: heads 16-128, 1-4 new tokens a row, batch 1-64, contexts 8k-64k, bf16, blocks of 64 scattered over
the arena. The floor is the larger of bytes / 4.3 TB/s (a measured copy) and operations / 800 TFLOP/s (a
measured product). Peers were measured once on the same kind of card in the same way, see
peers/mla_decode_h200.json. Each cell is first held against float64 (all rows up to four, else four of them).

`us` is what the peers' numbers are: the median replay of a graph of one launch, with 256 MB written in between,
so that nothing is left in the caches. `row us` is one launch of a graph of many, each on other blocks: what a
layer costs inside a step. The schedule, which all layers of a step share, is made once and is not timed;
`schedule us` is what it takes. Exit code 1 when a result is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from tokenspeed import kernels

LATENT, ROPE, BLOCK_TOKENS = 512, 64, 64
BYTES_PER_US, FLOP_PER_US = 4.3e6, 800e6
PEERS = Path(__file__).with_name("peers") / "mla_decode_h200.json"
REPLAYS = 15
FLUSH_BYTES = 256 << 20
IN_A_ROW_BYTES = 400 << 20
"""KV that the launches of `row us` read before one reads the same again: several times the cache."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One question, and what peers answered (us)."""

    heads: int
    q: int
    batch: int
    kv: int
    peers: tuple[float, ...]

    @property
    def name(self) -> str:
        return f"{self.heads}/{self.q}/{self.batch}/{self.kv // 1024}k"

    @property
    def floor_us(self) -> float:
        rows = self.q * self.heads
        moved = 2 * self.batch * (self.kv * (LATENT + ROPE) + rows * (2 * LATENT + ROPE))
        return max(moved / BYTES_PER_US, 2 * self.batch * self.kv * rows * (2 * LATENT + ROPE) / FLOP_PER_US)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was measured in one cell."""

    cell: str
    floor_us: float
    us: float
    row_us: float
    schedule_us: float
    peer_us: float
    error: float
    right: bool


def cells(only: str) -> Iterator[Cell]:
    for heads, q, batch, kv, _, *peers in json.loads(PEERS.read_text())["cells"]:
        cell = Cell(heads, q, batch, kv, tuple(us for us in peers if us is not None))
        if all(want in ("*", have) for want, have in zip(only.split("/"), cell.name.split("/"), strict=True)):
            yield cell


@dataclass(frozen=True, slots=True)
class Work:
    """The arguments of a cell's calls: one table for each launch in a row."""

    q_latent: Tensor
    q_rope: Tensor
    arena: Tensor
    tables: list[Tensor]
    context_lens: Tensor
    scale: float

    @classmethod
    def of(cls, cell: Cell, arena: Tensor) -> Work:
        blocks = cell.kv // BLOCK_TOKENS
        copies = min(
            arena.shape[0] // (blocks * cell.batch), 1 + IN_A_ROW_BYTES // (cell.batch * cell.kv * 1152)
        )
        order = torch.randperm(arena.shape[0], device=arena.device)[: copies * cell.batch * blocks]
        return cls(
            torch.randn(cell.batch * cell.q, cell.heads, LATENT, device=arena.device).bfloat16(),
            torch.randn(cell.batch * cell.q, cell.heads, 128 + ROPE, device=arena.device).bfloat16()[
                ..., 128:
            ],
            arena,
            list(order.to(torch.int32).view(copies, cell.batch, blocks)),
            torch.full((cell.batch,), cell.kv, dtype=torch.int32, device=arena.device),
            192**-0.5 / 3,
        )


def error_of(cell: Cell, work: Work, got: Tensor) -> float:
    """The largest |error| over its tolerance, against float64: at most 1 is right."""
    rows = range(cell.batch) if cell.batch <= 4 else (0, 1, cell.batch // 2, cell.batch - 1)
    worst = 0.0
    for row in rows:
        own = slice(row * cell.q, (row + 1) * cell.q)
        kv = work.arena[work.tables[0][row].long()].flatten(0, 1).double()
        q = torch.cat((work.q_latent[own], work.q_rope[own]), -1).double()
        scores = (q.flatten(0, 1) @ kv.T).view(cell.q, cell.heads, cell.kv) * work.scale
        query_at = torch.arange(cell.kv - cell.q, cell.kv, device=kv.device)
        hidden = torch.arange(cell.kv, device=kv.device)[None] > query_at[:, None]
        want = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1) @ kv[:, :LATENT]
        ratio = (got[own].double() - want).abs() / (8e-3 + 1.6e-2 * want.abs())
        worst = max(worst, float(ratio.nan_to_num(torch.inf).max()))
    return worst


def captured(calls: list[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def replay_us(calls: list[Callable[[], object]], flush: Tensor) -> float:
    """Median time of a graph of these calls, cold, for one of them."""
    graph = captured(calls)
    times: list[float] = []
    for turn in range(REPLAYS + 2):
        flush.fill_(turn)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times[2:])


def answer(cell: Cell, bound: kernels.Bound, arena: Tensor, flush: Tensor) -> Answer:
    work = Work.of(cell, arena)
    schedule = bound.schedule(work.context_lens, cell.q)
    out = torch.full_like(work.q_latent, torch.nan)

    def call(table: Tensor) -> Callable[[], object]:
        return lambda: bound(
            work.q_latent,
            work.q_rope,
            arena,
            table,
            work.context_lens,
            work.scale,
            schedule=schedule,
            out=out,
        )

    call(work.tables[0])()
    error = error_of(cell, work, out)
    calls = [call(table) for table in work.tables]
    us, row_us = replay_us(calls[:1], flush), replay_us(calls, flush)
    schedule_us = 0.0
    if schedule is not None:
        schedule_us = replay_us([lambda: bound.schedule(work.context_lens, cell.q)] * 8, flush)
    return Answer(cell.name, cell.floor_us, us, row_us, schedule_us, min(cell.peers), error, error <= 1)


HEADER = (
    f"{'heads/q/batch/kv':18} {'floor':>8} {'us':>8} {'row us':>8} {'/floor':>7} {'peer':>8} {'peer/us':>8}"
)


def line(one: Answer) -> str:
    mark = "" if one.right else f"  WRONG: error {one.error:.2g} of its tolerance"
    return (
        f"{one.cell:18} {one.floor_us:8.1f} {one.us:8.1f} {one.row_us:8.1f} {one.us / one.floor_us:7.2f} "
        f"{one.peer_us:8.1f} {one.peer_us / one.us:8.2f}{mark}"
    )


def summary(answers: list[Answer]) -> str:
    def mean(us: Callable[[Answer], float]) -> float:
        return math.exp(statistics.fmean(math.log(us(one) / one.floor_us) for one in answers))

    slower = [one.cell for one in answers if one.us > one.peer_us]
    return (
        f"geometric mean over the floor: {mean(lambda one: one.us):.3f}, in a row "
        f"{mean(lambda one: one.row_us):.3f}, best peer {mean(lambda one: one.peer_us):.3f}; schedule "
        f"{statistics.median(one.schedule_us for one in answers):.1f} us\n"
        f"slower than the best peer in {len(slower)} of {len(answers)} cells: {' '.join(slower) or 'none'}"
    )


def write(path: Path, kernel: str, answers: list[Answer]) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    said = {
        "benchmark": "mla_decode",
        "commit": commit.stdout.strip(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "kernel": kernel,
        "rows": [asdict(one) for one in answers],
    }
    path.write_text(json.dumps(said, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*/*/*/*", help="heads/q/batch/kv, * for all of one")
    parser.add_argument("--kernel", help="name of a kernel instead of the one that is chosen")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = kernels.describe("cuda")
    asked = list(cells(args.only))
    blocks = max(cell.batch * cell.kv for cell in asked) // BLOCK_TOKENS
    arena = torch.empty((max(blocks, 8192), BLOCK_TOKENS, LATENT + ROPE), dtype=torch.bfloat16, device="cuda")
    arena.normal_()
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    answers: list[Answer] = []
    print(HEADER)
    for cell in asked:
        traits = {"dtype": torch.bfloat16, "heads": cell.heads, "latent": LATENT, "rope": ROPE}
        with kernels.overriding(*([f"attention.mla_decode={args.kernel}"] if args.kernel else [])):
            bound = kernels.bind("attention.mla_decode", device, block_tokens=BLOCK_TOKENS, **traits)
        answers.append(answer(cell, bound, arena, flush))
        print(line(answers[-1]), flush=True)
        if args.json:
            write(args.json, bound.choice.kernel.name, answers)
    print(summary(answers))
    return 0 if all(one.right for one in answers) else 1


if __name__ == "__main__":
    sys.exit(main())
