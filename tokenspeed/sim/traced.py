# SPDX-License-Identifier: MIT
"""`tokenspeed sim --trace T ...`: recorded agents on the real control plane, one case or a grid of them.

Exit code 0; 2 for wrong arguments. Options that take several values are crossed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Final

from tokenspeed.base.errors import SetupError
from tokenspeed.sim.device import DEVICES, NOISES
from tokenspeed.sim.sessions import GAP_MAX_S
from tokenspeed.sim.study import ENDLESS, Case, Result, device_of, run, table

PROG: Final = "tokenspeed sim"


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments (without the program's name)."""
    args = _parser().parse_args(argv)
    cases = [
        Case(
            sessions=sessions,
            floor_tps=floor,
            pool=pool,
            host=args.host if policies == "tiers" or "tiers" in policies.split("+") else 0.0,
            policies=policies,
            seed=seed,
            noise=noise,
            model=args.model,
            device=args.device,
            minutes=args.minutes,
            warm_up_minutes=args.warm_up,
            gap_scale=args.gap_scale,
            final=args.final,
            closes=args.close,
            overlap=not args.no_overlap,
            tenants=_tenants(args.tenants, sessions),
        )
        for policies, sessions, pool, noise, seed, floor in product(
            args.policies, args.sessions, args.pool, args.noise, args.seeds, args.floor
        )
    ]
    device_of(cases[0])
    for case in cases:
        _ = case.switches
    lines = table([])
    print(next(lines))

    def progress(result: Result) -> None:
        print(list(table([result]))[1], flush=True)

    results = run(cases, args.trace, jobs=args.jobs, progress=progress, journal=args.event_log)
    if args.json:
        words = [args.trace.name if word == str(args.trace) else word for word in argv]
        args.json.write_text(_document(words, results))
    return 0


def _tenants(shares: Sequence[int], sessions: int) -> tuple[int, ...]:
    """Lanes given to tenants 1, 2, .. in these parts."""
    if not shares:
        return ()
    if sum(shares) != sessions:
        raise SetupError(
            f"--tenants {' '.join(map(str, shares))}: they have to add up to --sessions {sessions}"
        )
    return tuple(tenant for tenant, lanes in enumerate(shares, 1) for _ in range(lanes))


def _document(words: Sequence[str], results: Sequence[Result]) -> str:
    """The JSON file of a study: how it was made, on what assumptions, what came; a line for each row."""
    case = results[0].case
    head = {
        "benchmark": "sim",
        "commands": [f"{PROG} {' '.join(words)}"],
        "commit": _commit(),
        "machine": platform.processor() or platform.machine(),
        "device_model": asdict(device_of(case)),
        "noises": {name: asdict(noise) for name, noise in NOISES.items()},
        "gap_max_s": GAP_MAX_S,
    }
    rows = ",\n".join(json.dumps(result.row()) for result in results)
    return f'{json.dumps(head)[:-1]},\n"rows": [\n{rows}\n]}}\n'


def _commit() -> str:
    """The commit of the working tree, with a plus where it has changes."""
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return out.stdout.strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{PROG} --trace",
        description="Play recorded agent sessions on the real control plane, with step times from a formula.",
    )
    add = parser.add_argument
    add("--trace", type=Path, required=True, metavar="FILE", help="agent_replay lines, or a folder of traces")
    add("--sessions", type=int, nargs="+", default=[16], metavar="N", help="live sessions (default 16)")
    add(
        "--floor",
        type=int,
        nargs="+",
        default=[40],
        metavar="F",
        help="tokens per second promised (default 40)",
    )
    add(
        "--pool",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="X",
        help=f"KV of the device, in working sets of N sessions (default 1.0; {ENDLESS:g} evicts nothing)",
    )
    add("--host", type=float, default=1.0, metavar="X", help="KV of the host tier, likewise (default 1.0)")
    add(
        "--policies",
        nargs="+",
        default=["off", "on"],
        metavar="P",
        help="off, on, tiers, or switches joined with + (default: off on)",
    )
    add(
        "--noise",
        nargs="+",
        default=["exact"],
        choices=sorted(NOISES),
        help="how steps stray from the formula",
    )
    add("--seeds", type=int, nargs="+", default=[0], metavar="S", help="order of sessions, starts, noise")
    add(
        "--model",
        default="moonlight",
        choices=sorted({model for model, _ in DEVICES}),
        help="step times of it",
    )
    add("--device", default="h200", choices=sorted({device for _, device in DEVICES}), help="on this")
    add("--minutes", type=float, default=20.0, help="simulated and measured (default 20)")
    add("--warm-up", type=float, default=5.0, metavar="MINUTES", help="before that (default 5)")
    add("--gap-scale", type=float, default=1.0, metavar="X", help="recorded waits times this (default 1)")
    add("--tenants", type=int, nargs="+", default=[], metavar="LANES", help="sessions of each tenant")
    add("--final", action="store_true", help="sessions say which turn is their last")
    add("--close", action="store_true", help="sessions are closed when they end")
    add("--no-overlap", action="store_true", help="launch a step after the one before was read")
    add("--jobs", type=int, default=os.cpu_count() or 1, metavar="J", help="processes (default: cores)")
    add(
        "--event-log",
        type=Path,
        metavar="FILE",
        help="write the journal of the one run here, to replay or audit",
    )
    add("--json", type=Path, metavar="FILE", help="write everything here")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
