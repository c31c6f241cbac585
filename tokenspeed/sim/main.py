# SPDX-License-Identifier: MIT
"""`tokenspeed sim`: run seeded worlds over the real control plane and loop, and report.

Exit code 0 if every law held, 1 if one broke, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tokenspeed.sim import report, traced
from tokenspeed.sim.replay import read_journal, replay
from tokenspeed.sim.search import Cut, quiet, run_seed, run_seeds, shrink
from tokenspeed.sim.workload import FEATURES


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments (without the program's name)."""
    if any(word == "--trace" or word.startswith("--trace=") for word in argv) and not _is_flag(argv):
        return traced.main(argv)
    args = _parser().parse_args(argv)
    if args.replay is not None:
        return _again(args.replay)
    unknown = args.without - set(FEATURES)
    if unknown:
        print(f"unknown feature {', '.join(sorted(unknown))}; known: {', '.join(FEATURES)}", file=sys.stderr)
        return 2
    quiet()
    cut = Cut(args.without, args.sessions)
    if args.seed is not None:
        return _one(args.seed, cut, aloud=args.trace)
    return _many(args.first, args.seeds, cut, jobs=args.jobs)


def _is_flag(argv: Sequence[str]) -> bool:
    """Whether `--trace` stands alone: with a seed it prints events; with a file it names the sessions to play."""
    after = [*argv, ""][list(argv).index("--trace") + 1] if "--trace" in argv else "file"
    return after == "" or after.startswith("-")


def _again(path: Path) -> int:
    found = replay(read_journal(path))
    print(f"{found.events} events, {found.inputs} of them calls, {found.steps} steps")
    if found.difference is None:
        print("the same decisions, every one")
        return 0
    print(f"the first difference: {found.difference}")
    return 1


def _one(seed: int, cut: Cut, *, aloud: bool) -> int:
    run = run_seed(seed, cut, aloud=aloud)
    if run.law is None:
        print(f"seed {seed} passed: {run.reached['requests']} requests in {run.reached['steps']} steps")
        return 0
    run.events[:] = [] if aloud else run.events
    print("\n".join(report.failure(run, f"tokenspeed sim --seed {seed}{cut.options()} --trace")))
    return 1


def _many(first: int, count: int, cut: Cut, *, jobs: int) -> int:
    start = time.monotonic()

    def progress(done: int) -> None:
        if sys.stderr.isatty():
            rate = done / (time.monotonic() - start)
            print(f"\r{done} of {count} seeds, {rate:.0f}/s ", end="", file=sys.stderr, flush=True)

    tally = run_seeds(first, count, cut, jobs=jobs, progress=progress)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print("\n".join(report.summary(tally)))
    print(f"\n{time.monotonic() - start:.1f} s in {jobs} processes")
    for failed in sorted(tally.failures, key=lambda run: run.seed)[:1]:
        run, least = shrink(failed, cut)
        print()
        print("\n".join(report.failure(run, f"tokenspeed sim --seed {run.seed}{least.options()} --trace")))
    return 1 if tally.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenspeed sim",
        description="Run the real control plane and loop over seeded, simulated worlds.",
    )
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="how many worlds (default 1000)")
    parser.add_argument(
        "--from", type=int, default=0, dest="first", metavar="SEED", help="the first seed (default 0)"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="J", help="processes (default: cores)"
    )
    parser.add_argument("--seed", type=int, metavar="SEED", help="run this world alone")
    parser.add_argument(
        "--trace",
        action="store_true",
        help="with --seed: print every event. With a file: play recorded sessions (--trace FILE --help)",
    )
    parser.add_argument(
        "--replay", type=Path, metavar="LOG", help="live through a journal again and compare every decision"
    )
    parser.add_argument(
        "--without", type=_names, default=frozenset(), metavar="FEATURE,..", help="features to leave out"
    )
    parser.add_argument("--sessions", type=_indexes, metavar="I,..", help="keep only these sessions")
    return parser


def _names(text: str) -> frozenset[str]:
    return frozenset(name for name in text.split(",") if name)


def _indexes(text: str) -> frozenset[int]:
    return frozenset(int(index) for index in text.split(",") if index)
