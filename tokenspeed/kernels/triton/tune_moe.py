# SPDX-License-Identifier: MIT
"""Find the tiles of `moe.experts` that are fastest on this device, and write them down for `tuned`.

    python -m tokenspeed.kernels.triton.tune_moe --experts 64 --shared 2 --top-k 6 --width 2048 --ffn 1408

In: a shape; who chooses which expert is drawn at random. Out: for each bucket of tokens the best plan, added to
the file of this device. The tiles of the two products do not depend on each other, so each is tried beside one
partner. A candidate is timed in a CUDA graph of several calls, with other choices and other copies of the
weights in turn, so that no cache holds them; one that does not fit the device is left out. Candidates are
compiled first, by several processes at once.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from tokenspeed.kernels.triton import moe, moe_few, moe_many, moe_weights, tuned

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 256, 1024, 8192)
REPLAYS = 5
COPIES = 2
CALLS_MAX = 16


@dataclass(frozen=True, slots=True)
class Case:
    """One bucket of one shape, bfloat16."""

    tokens: int
    experts: int
    shared: int
    top_k: int
    width: int
    ffn: int

    @property
    def shape(self) -> tuned.Shape:
        """What plans are looked up by."""
        held = {name: getattr(self, name) for name in ("experts", "shared", "top_k", "width", "ffn")}
        return {"dtype": "bfloat16", "format": "native", **held}


def candidates(case: Case) -> tuple[Sequence[moe.Plan], Sequence[moe.Plan]]:
    """Plans that differ in the first product, and plans that differ in the second."""
    if case.tokens <= moe_few.TOKENS_MAX:
        cuts = [(64, 64, 4, 4), (64, 64, 6, 4), (64, 128, 2, 4), (64, 128, 3, 4), (64, 128, 4, 4), (64, 256, 2, 4),
                (128, 64, 3, 4), (128, 64, 4, 8), (128, 128, 3, 8), (32, 128, 4, 4), (16, 256, 4, 4)]  # fmt: skip
        few = [moe_few.Tile(*cut) for cut in cuts]
        base = moe_few.Plan(few[3], few[3])
        return [replace(base, up=tile) for tile in few], [replace(base, down=tile) for tile in few]
    dense = case.tokens * case.top_k >= 96 * case.experts
    pairs = (128, 256) if dense else (32, 64)
    many = [
        moe_many.Tile(*cut)
        for cut in itertools.product(pairs, (64, 128, 256), (64, 128), (3, 4), (4, 8))
        if 1 << 13 <= cut[0] * cut[1] // cut[4] * 4 <= 1 << 15
    ]
    base = moe_many.Plan(many[0], many[0])
    ups = [replace(base, up=tile) for tile in many if tile.rows <= 128]
    return ups, [replace(base, down=tile) for tile in many if tile.rows >= 128]


@dataclass(frozen=True, slots=True)
class Bench:
    """A layer's weights, in copies, and what to run them on."""

    case: Case
    copies: list[moe_weights.Stacked]
    x: Tensor
    ids: Tensor
    weights: Tensor

    @classmethod
    def of(cls, case: Case, copies: list[moe_weights.Stacked]) -> Bench:
        calls = max(len(copies), min(CALLS_MAX, 512 // case.tokens))
        chosen = torch.rand(calls, case.tokens, case.experts, device="cuda").argsort(-1)[..., : case.top_k]
        return cls(
            case,
            copies,
            torch.randn(calls, case.tokens, case.width, device="cuda").bfloat16(),
            chosen.to(torch.int32).contiguous(),
            torch.rand(calls, case.tokens, case.top_k, device="cuda"),
        )

    def run(self, plan: moe.Plan, turn: int) -> Tensor:
        """One call."""
        w, x = self.copies[turn % len(self.copies)], self.x[turn]
        return moe.run(x, self.ids[turn], self.weights[turn], w, plan, torch.empty_like(x))

    def us(self, plan: moe.Plan) -> float:
        """Median time of a call; infinite when the plan does not fit."""
        try:
            self.run(plan, 0)
        except (OutOfResources, RuntimeError) as error:
            print(f"left out {plan}: {str(error).splitlines()[0]}", file=sys.stderr)
            return float("inf")
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for turn in range(len(self.x)):
                self.run(plan, turn)
        times: list[float] = []
        for _ in range(REPLAYS + 1):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e3 / len(self.x))
        return statistics.median(times[1:])


def stacked(case: Case) -> moe_weights.Stacked:
    """Random weights of one layer."""
    total = case.experts + case.shared
    w13 = torch.empty(total, 2 * case.ffn, case.width, dtype=torch.bfloat16, device="cuda")
    w2 = torch.empty(total, case.width, case.ffn, dtype=torch.bfloat16, device="cuda")
    return moe_weights.Stacked(w13.normal_(std=case.width**-0.5), w2.normal_(std=case.ffn**-0.5), case.shared)


def compile_all(work: Sequence[tuple[Case, moe.Plan]]) -> None:
    """Run each plan once on one layer, so that the compiler's cache has it; a misfit is met again when timed."""
    copies = [stacked(work[0][0])] if work else []
    for case, plan in work:
        with contextlib.suppress(OutOfResources, RuntimeError):
            Bench.of(case, copies).run(plan, 0)


def tuned_entry(bench: Bench) -> tuned.Entry:
    """Try every candidate of one bucket."""
    ups, downs = candidates(bench.case)
    up = min(ups, key=bench.us)
    plan = min((replace(plan, up=up.up) for plan in downs), key=bench.us)
    us = round(bench.us(plan), 2)
    print(f"{bench.case.tokens:6} tokens {us:9.1f} us  {plan}", flush=True)
    kind = "few" if isinstance(plan, moe_few.Plan) else "many"
    held = {name: [*tile.values()] for name, tile in asdict(plan).items()}
    return tuned.Entry(bench.case.shape, bench.case.tokens, {kind: held}, us)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("experts", "top-k", "width", "ffn"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--shared", type=int, default=0)
    parser.add_argument("--tokens", default=",".join(map(str, BUCKETS)), help="buckets")
    parser.add_argument("--processes", type=int, default=8, help="that compile")
    args = parser.parse_args()
    cases = [
        Case(tokens, args.experts, args.shared, args.top_k, args.width, args.ffn)
        for tokens in map(int, args.tokens.split(","))
    ]
    work = [(case, plan) for case in cases for plans in candidates(case) for plan in plans]
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_all, [work[at :: args.processes] for at in range(args.processes)]))
    copies = [stacked(cases[0]) for _ in range(COPIES)]
    found = [tuned_entry(Bench.of(case, copies)) for case in cases]
    print(tuned.write(moe.OP, torch.cuda.get_device_name(), moe.VERSION, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
