# SPDX-License-Identifier: MIT
"""How close does each kernel come to what this device can do? Every registered kernel over its op's benchmark
points.

In: patterns of op names, a device. Out: a table, and with `--json` the raw rows with commit, device and seed.
The ceiling is measured in the same run: the best rate of bytes (a stream, a copy) and of floating point
operations (a matrix product) that a probe or a kernel reached. A point's floor is the longer of (bytes it
must move / the one) and (operations / the other); its share is floor / time. Weights and KV are taken from as
many copies as exceed the last-level cache, since a model never finds them there; inputs under 1 MiB stay hot,
as in a step, and so do the references, which are far from any ceiling. It checks nothing: the cross-check
test does.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tokenspeed.base.errors import SetupError
from tokenspeed.bench.provenance import commit
from tokenspeed.kernels.check import twin
from tokenspeed.kernels.device import Device, describe
from tokenspeed.kernels.draw import Draw
from tokenspeed.kernels.explain import table
from tokenspeed.kernels.load import build, registry
from tokenspeed.kernels.needs import show
from tokenspeed.kernels.registry import REF
from tokenspeed.kernels.select import select, unmet_needs
from tokenspeed.kernels.spec import Kernel, Op, Point

COLD_BYTES = 128 << 20
"""Data that passes between two uses of one copy: several times a last-level cache."""
HOT_BYTES = 1 << 20
"""Inputs smaller than this are not copied."""
COPIES_MAX = 32
CALLS_MAX = 500


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel at one point; `times_us` are the raw times of the calls."""

    op: str
    kernel: str
    traits: dict[str, str]
    sizes: str
    dtype: str
    """Of the arithmetic, which decides the ceiling."""
    cold: bool
    """Weights and KV came from memory, not from a cache."""
    bytes: int
    flop: int
    median_us: float
    times_us: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What this device was seen to reach in this run."""

    bytes_per_s: float
    flop_per_s: dict[str, float]

    def floor_us(self, row: Row) -> float:
        """Return the least time a row's call can take."""
        return max(row.bytes / self.bytes_per_s, row.flop / self.flop_per_s[row.dtype]) * 1e6

    def raised(self, rows: Sequence[Row]) -> Ceiling:
        """Return the ceiling with what kernels reached, where that was more than the probes did."""
        moved = [row.bytes / row.median_us * 1e6 for row in rows if row.cold]
        flop_per_s = dict(self.flop_per_s)
        for row in rows:
            flop_per_s[row.dtype] = max(flop_per_s[row.dtype], row.flop / row.median_us * 1e6)
        return Ceiling(max(self.bytes_per_s, *moved, 0.0), flop_per_s)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; print a table, write JSON if asked. Return the exit status."""
    options = _parser().parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = describe(options.device)
    try:
        asked = list(_asked(options.ops, device, not options.no_ref))
    except SetupError as error:
        print(error, file=sys.stderr)
        return 2
    probed = measure_ceiling(device, options.seconds)
    rows: list[Row] = []
    for op, kernel, point in asked:
        told = f"{len(rows)}/{len(asked)} {op.name}={kernel.name} {point.sizes}"
        print(f"\r{told}\033[K", end="", file=sys.stderr, flush=True)
        rows.append(measure(op, kernel, point, device, options.seconds, options.seed))
    print("\r\033[K", end="", file=sys.stderr)
    ceiling = probed.raised(rows)
    print(f"{device}\nprobes:  {_said(probed)}\nceiling: {_said(ceiling)}\n\n{report(rows, ceiling)}")
    if options.json:
        options.json.write_text(json.dumps(_record(options, device, ceiling, rows), indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenspeed bench kernels", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("ops", nargs="*", default=["*"], help="patterns of op names, such as 'attention.*'")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; all cores when absent")
    parser.add_argument("--seconds", type=float, default=0.2, help="time spent on each kernel and point")
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs")
    parser.add_argument("--no-ref", action="store_true", help="leave the references out, which are slow")
    parser.add_argument("--json", type=Path, help="write raw rows to this file")
    return parser


def _asked(patterns: Sequence[str], device: Device, with_ref: bool) -> Iterator[tuple[Op, Kernel, Point]]:
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(op.name, pattern) for op in registry().ops()):
            raise SetupError(
                f"no op matches {pattern!r}; ops are: {', '.join(op.name for op in registry().ops())}"
            )
    for op in registry().ops():
        if not any(fnmatch.fnmatchcase(op.name, pattern) for pattern in patterns):
            continue
        for point, kernel in itertools.product(op.points, registry().kernels(op.name)):
            if unmet_needs(kernel.needs, op.complete(point.traits), device):
                continue
            if with_ref or kernel.name != REF:
                yield op, kernel, point


def measure(op: Op, kernel: Kernel, point: Point, device: Device, seconds: float, seed: int) -> Row:
    """Time one kernel at one point."""
    choice = select(registry(), op.name, point.traits, device, override=kernel.name)
    bound = build(choice)
    cost = op.cost(choice.traits, point.sizes)
    inputs = op.inputs(choice.traits, point.sizes, Draw(seed, device.torch))
    hot = cost.bytes < HOT_BYTES or kernel.name == REF
    copies = 1 if hot else min(COPIES_MAX, COLD_BYTES // cost.bytes + 1)
    calls: list[Callable[[], Any]] = []
    for _ in range(copies):
        args = {name: twin(value) for name, value in inputs.args.items()}
        if inputs.weights:
            prepared = bound.prepare(*(twin(weight) for weight in inputs.weights))
            whole = prepared if len(inputs.weights_as) > 1 else (prepared,)
            args |= zip(inputs.weights_as, whole, strict=True)
        calls.append(partial(bound, **args))
    times = timed(calls, device, seconds)
    return Row(
        op=op.name,
        kernel=kernel.name,
        traits={name: show(value) for name, value in choice.traits.items()},
        sizes=str(point.sizes),
        dtype=show(op.result_dtype(choice.traits)),
        cold=not hot,
        bytes=cost.bytes,
        flop=cost.flop,
        median_us=statistics.median(times) * 1e6,
        times_us=tuple(round(each * 1e6, 3) for each in times),
    )


def timed(calls: Sequence[Callable[[], Any]], device: Device, seconds: float) -> list[float]:
    """Call in turn for about `seconds` after a warm-up; return the time of each call, in seconds."""
    calls[0]()
    _synchronise(device)
    times: list[float] = []
    end = time.perf_counter() + seconds
    for call in itertools.islice(itertools.cycle(calls), CALLS_MAX):
        begin = time.perf_counter()
        call()
        _synchronise(device)
        now = time.perf_counter()
        times.append(now - begin)
        if now > end:
            break
    return times


def _synchronise(device: Device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device.torch)


def measure_ceiling(device: Device, seconds: float) -> Ceiling:
    """Measure the stream and the matrix products of this device, best of the calls."""
    source = torch.ones(COLD_BYTES // 4, dtype=torch.float32, device=device.torch)
    matrix, vector = source.view(-1, 8192), source[:8192]
    target = torch.empty_like(source)
    streams = {1: lambda: torch.mv(matrix, vector), 2: lambda: target.copy_(source)}
    size = source.numel() * source.itemsize
    best = max(passes * size / min(timed([call], device, seconds)) for passes, call in streams.items())
    products: dict[str, float] = {}
    for dtype in (torch.bfloat16, torch.float32):
        edge = 1024 if device.type == "cpu" else 8192
        a, b = (torch.ones(edge, edge, dtype=dtype, device=device.torch) for _ in range(2))
        products[show(dtype)] = 2 * edge**3 / min(timed([lambda a=a, b=b: a @ b], device, seconds))
    return Ceiling(best, products)


def report(rows: Sequence[Row], ceiling: Ceiling) -> str:
    """Lay the rows out as a table: time, rates, share of the ceiling, times as fast as the reference."""
    references = {
        (row.op, *row.traits.items(), row.sizes): row.median_us for row in rows if row.kernel == REF
    }
    lines: list[tuple[str, ...]] = []
    for row in rows:
        reference = references.get((row.op, *row.traits.items(), row.sizes))
        lines.append(
            (
                row.op,
                row.kernel,
                " ".join(f"{name}={value}" for name, value in row.traits.items()),
                row.sizes,
                f"{row.median_us:.1f}",
                f"{row.bytes / row.median_us / 1e3:.1f}",
                f"{row.flop / row.median_us / 1e3:.1f}",
                f"{ceiling.floor_us(row) / row.median_us:.0%}",
                "" if reference is None else f"{reference / row.median_us:.1f}",
            )
        )
    return table(("op", "kernel", "traits", "sizes", "us", "GB/s", "GFLOP/s", "share", "x ref"), lines)


def _said(ceiling: Ceiling) -> str:
    rates = ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in ceiling.flop_per_s.items())
    return f"{ceiling.bytes_per_s / 1e9:.1f} GB/s, {rates}"


def _record(
    options: argparse.Namespace, device: Device, ceiling: Ceiling, rows: Sequence[Row]
) -> dict[str, Any]:
    return {
        "benchmark": "kernels",
        "commit": commit(),
        "device": str(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "config": {name: str(value) for name, value in vars(options).items()},
        "ceiling": asdict(ceiling),
        "rows": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
