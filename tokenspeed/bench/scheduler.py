# SPDX-License-Identifier: MIT
"""What does the control plane cost per step? Microseconds of plan + commit, as the loop pays them in Python.

In: options of the command line. Out: a table against the bars, and with `--json` the raw rows. A round is
what the loop does: `plan`, a read of every array of the plan, `commit`, a read of every array of the outcome.
With overlap, step n+1 is planned before step n commits. Decode rounds include the block that every
`block_tokens`-th round takes and freezes. There is no device here: results are made up before the clock
starts. The table shows medians; the JSON has every sample.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tokenspeed.bench.provenance import commit, machine
from tokenspeed.control import Outcome, Plan, Scheduler, SchedulerOptions, SubmitStatus

BLOCK_TOKENS: Final = 64
CONTEXTS: Final = (2 << 10, 16 << 10, 64 << 10)
RUNNING: Final = (16, 64, 256)
BARS_US: Final = {(16, 64 << 10): 15.0, (64, 64 << 10): 60.0, (256, 64 << 10): 150.0}
BLOCKED_BAR_US: Final = 30.0
FLAT_BAR: Final = 0.20
TURN_ROUNDS: Final = 20
NO_STOPS: Final[NDArray[np.int32]] = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Row:
    """One measured case; `times_us` are the raw samples."""

    name: str
    running: int
    context_tokens: int
    overlap: bool
    bar_us: float | None
    times_us: tuple[float, ...]

    @property
    def median_us(self) -> float:
        return statistics.median(self.times_us)

    @property
    def p99_us(self) -> float:
        return sorted(self.times_us)[int(0.99 * (len(self.times_us) - 1))]


def read_plan(plan: Plan) -> int:
    """Take every array of a plan, as the executor does; return the size of its result."""
    _ = (plan.request_ids, plan.slots, plan.starts, plan.lengths, plan.sampled, plan.tokens)
    _ = (plan.table_slots, plan.table_indexes, plan.table_blocks)
    _ = (plan.bound_slots, plan.bound_request_ids, plan.cached_tokens)
    return plan.samples


def read_outcome(outcome: Outcome) -> None:
    """Take every array of an outcome, as the front does."""
    _ = (outcome.request_ids, outcome.tokens, outcome.finish)


class Bench:
    """A scheduler and the sources of its prompts and results."""

    def __init__(
        self, *, running: int, context_tokens: int, output_tokens: int, overlap: bool, seed: int
    ) -> None:
        self._random = np.random.default_rng(seed)
        self._results = self._random.integers(0, 1000, (4096, running + 1), dtype=np.int32)
        self._output_tokens = output_tokens
        self.scheduler = Scheduler(
            SchedulerOptions(
                blocks_total=(running + 1) * -(-(context_tokens + output_tokens) // BLOCK_TOKENS),
                block_tokens=BLOCK_TOKENS,
                slots_max=running + 1,
                tokens_per_step_max=1 << 16,
                rows_per_step_max=running + 1,
                prefill_tokens_max=1 << 16,
                waiting_max=running + 64,
                context_tokens_max=context_tokens + output_tokens,
                overlap=overlap,
                hash_key=bytes(range(16)),
                seed=seed,
            )
        )
        self._overlap = overlap
        self._flight: tuple[int, int] | None = None
        self._turn = 0

    def prompt(self, tokens: int) -> NDArray[np.int32]:
        return self._random.integers(0, 100_000, tokens, dtype=np.int32)

    def submit(self, request_id: int, prompt: NDArray[np.int32]) -> None:
        status = self.scheduler.submit(
            request_id, prompt, tokens_max=self._output_tokens, stop_ids=NO_STOPS, now_us=0
        )
        if status != SubmitStatus.ACCEPTED:
            raise RuntimeError(f"the scheduler answered {status.name} to a request of the benchmark")

    def round(self) -> None:
        """Plan a step and commit the one before it (with overlap) or itself (without)."""
        plan = self.scheduler.plan(self._turn)
        launched = None if plan is None else (plan.step, read_plan(plan))
        if not self._overlap:
            launched, self._flight = None, launched
        if self._flight is not None:
            step, samples = self._flight
            read_outcome(self.scheduler.commit(step, self._results[self._turn % 4096, :samples]))
        self._flight = launched
        self._turn += 1

    def settle(self, running: int) -> None:
        """Run until this many requests decode."""
        while self.scheduler.stats().decoding < running:
            self.round()
        for _ in range(8):
            self.round()


def timed(body: Callable[[], None], rounds: int) -> tuple[float, ...]:
    """Microseconds of each of `rounds` calls, without garbage collection, after one that warms the caches."""
    samples: list[float] = []
    gc.collect()
    gc.disable()
    try:
        body()
        for _ in range(rounds):
            start_ns = time.perf_counter_ns()
            body()
            samples.append((time.perf_counter_ns() - start_ns) / 1000)
    finally:
        gc.enable()
    return tuple(samples)


def fill(bench: Bench, running: int, context_tokens: int) -> None:
    """Bring `running` requests of about this context into decoding.

    Their lengths differ by up to 1023 tokens, as real ones do. Were they equal, every row would cross its
    block's end in the same round, and the ends of all token lists would share one set of the cache.
    """
    for request_id in range(running):
        bench.submit(request_id, bench.prompt(context_tokens - 37 * request_id % 1024))
    bench.settle(running)


def measure_decode(running: int, *, overlap: bool, rounds: int, seed: int) -> Iterator[Row]:
    """One row per context; they take turns, so that a slow moment of the machine meets all of them."""
    benches: dict[int, Bench] = {}
    for context_tokens in CONTEXTS:
        bench = Bench(
            running=running,
            context_tokens=context_tokens,
            output_tokens=2 * rounds + 64,
            overlap=overlap,
            seed=seed,
        )
        fill(bench, running, context_tokens)
        benches[context_tokens] = bench
    times_us: dict[int, list[float]] = {context_tokens: [] for context_tokens in CONTEXTS}
    for first in range(0, rounds, TURN_ROUNDS):
        for context_tokens, bench in benches.items():
            times_us[context_tokens] += timed(bench.round, min(TURN_ROUNDS, rounds - first))
    for context_tokens, times in times_us.items():
        bar_us = BARS_US.get((running, context_tokens))
        yield Row("decode", running, context_tokens, overlap, bar_us, tuple(times))


def measure_blocked(*, overlap: bool, rounds: int, seed: int) -> Row:
    """17 decode, and 16 prompts of 50k wait for blocks that are not there."""
    bench = Bench(
        running=16, context_tokens=64 << 10, output_tokens=2 * rounds + 64, overlap=overlap, seed=seed
    )
    fill(bench, 17, 64 << 10)
    for request_id in range(17, 33):
        bench.submit(request_id, bench.prompt(50_000))
    bench.round()
    times_us = timed(bench.round, rounds)
    if bench.scheduler.stats().waiting != 16:
        raise RuntimeError("the waiting prompts were not blocked")
    return Row("decode, 16 x 50k blocked", 17, 64 << 10, overlap, BLOCKED_BAR_US, times_us)


def measure_admission(*, rounds: int, seed: int) -> Iterator[Row]:
    """A 64k prompt, 60k of it in the prefix tree: submit (hash, copy), then plan (match, table, chunk)."""
    context_tokens, hit_tokens = 64 << 10, 60 << 10
    bench = Bench(running=1, context_tokens=context_tokens, output_tokens=1, overlap=False, seed=seed)
    shared = bench.prompt(hit_tokens)
    bench.submit(0, np.concatenate([shared, bench.prompt(1)]))
    bench.round()
    submits: list[float] = []
    plans: list[float] = []
    for request_id in range(1, rounds + 1):
        prompt = np.concatenate([shared, bench.prompt(context_tokens - hit_tokens)])
        start_ns = time.perf_counter_ns()
        bench.submit(request_id, prompt)
        submits.append((time.perf_counter_ns() - start_ns) / 1000)
        start_ns = time.perf_counter_ns()
        plan = bench.scheduler.plan(0)
        assert plan is not None
        samples = read_plan(plan)
        plans.append((time.perf_counter_ns() - start_ns) / 1000)
        if plan.cached_tokens[0] != hit_tokens:
            raise RuntimeError("the prefix was not found")
        bench.scheduler.commit(plan.step, np.zeros(samples, np.int32))
    yield Row("submit 64k", 0, context_tokens, False, None, tuple(submits))
    yield Row("plan its admission, 60k hit", 0, context_tokens, False, None, tuple(plans))


def flatness(rows: Sequence[Row]) -> dict[tuple[int, bool], float]:
    """For each (running, overlap): how far a context's median lies from the mean of all contexts, at most."""
    groups: dict[tuple[int, bool], list[float]] = {}
    for row in rows:
        if row.name == "decode":
            groups.setdefault((row.running, row.overlap), []).append(row.median_us)
    return {key: max(abs(each / statistics.mean(all_) - 1) for each in all_) for key, all_ in groups.items()}


def report(rows: Sequence[Row]) -> str:
    """The table as text."""
    lines = [
        f"{'case':<28} {'running':>7} {'context':>7} {'overlap':>7} {'median us':>10} {'p99 us':>8}  bar"
    ]
    for row in rows:
        shape = f"{row.running or '':>7} {row.context_tokens >> 10:>6}k {_switch(row.overlap):>7}"
        times = f"{row.median_us:>10.1f} {row.p99_us:>8.1f}"
        lines.append(f"{row.name:<28} {shape} {times}  {_verdict(row)}".rstrip())
    for (running, overlap), share in flatness(rows).items():
        verdict = f"(bar {FLAT_BAR:.0%})" + ("" if share <= FLAT_BAR else " MISSED")
        lines.append(f"context, {running} running, overlap {_switch(overlap)}: within {share:.0%} {verdict}")
    return "\n".join(lines)


def _switch(on: bool) -> str:
    return "on" if on else "off"


def _verdict(row: Row) -> str:
    if row.bar_us is None:
        return ""
    return f"{row.bar_us:.0f}" + ("" if row.median_us <= row.bar_us else " MISSED")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenspeed bench scheduler", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=400, help="rounds measured per case (default 400)")
    parser.add_argument(
        "--running", type=int, nargs="+", default=list(RUNNING), help="requests running at once"
    )
    parser.add_argument("--overlap", choices=("on", "off", "both"), default="both", help="overlap of steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts and results")
    parser.add_argument("--json", type=Path, help="write raw rows to this file")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; print a table, write JSON if asked. Return 0, or 1 where a bar was missed."""
    options = _parser().parse_args(argv)
    modes = {"on": (True,), "off": (False,), "both": (False, True)}[options.overlap]
    rows: list[Row] = []
    for overlap in modes:
        for running in options.running:
            rows.extend(measure_decode(running, overlap=overlap, rounds=options.rounds, seed=options.seed))
        rows.append(measure_blocked(overlap=overlap, rounds=options.rounds, seed=options.seed))
    rows.extend(measure_admission(rounds=max(8, options.rounds // 10), seed=options.seed))
    print(report(rows))
    if options.json:
        record = {
            "benchmark": "scheduler",
            "commit": commit(),
            "machine": asdict(machine()),
            "block_tokens": BLOCK_TOKENS,
            "seed": options.seed,
            "rows": [asdict(row) | {"median_us": row.median_us, "p99_us": row.p99_us} for row in rows],
        }
        options.json.write_text(json.dumps(record) + "\n")
    missed = any(row.bar_us is not None and row.median_us > row.bar_us for row in rows)
    return int(missed or any(share > FLAT_BAR for share in flatness(rows).values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
