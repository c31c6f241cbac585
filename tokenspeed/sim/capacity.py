# SPDX-License-Identifier: MIT
"""`tokenspeed plan`: how many sessions a device holds at a floor, with which tiers, on which mesh.

In: a trace, a model, a device, a floor and what a user may be asked to wait. Out: for each mesh the most live
sessions that keep all promises, found by doubling and bisection over the trace simulator (the real control plane,
so the answer is what it would do); the mesh with most sessions a device; for that one the least host tier that is
as good as an ample one. Exit code 0; 1 where not even one session passes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from tokenspeed.sim.device import DEVICES, NOISES
from tokenspeed.sim.sessions import read_sessions, working_set_tokens
from tokenspeed.sim.study import ROWS_MAX, Case, Result, device_of, run

HOST_SHARES: Final = (0.0, 0.25, 0.5, 1.0, 2.0)
"""Host tiers that are tried, in working sets; the last one is ample."""
AS_GOOD: Final = 0.98
"""Of the turns an hour with an ample tier."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What has to hold for a number of sessions to pass."""

    violating_max: float  # share of windows below the floor
    ttft_p95_max_s: float
    door_p95_max_s: float

    def broken(self, result: Result) -> str | None:
        """What a result breaks first."""
        measures = result.measures
        share = measures.windows_violating / measures.windows if measures.windows else 0.0
        if share > self.violating_max:
            return f"{share:.2%} of windows below the floor"
        if measures.ttft_p95_s > self.ttft_p95_max_s:
            return f"TTFT p95 {measures.ttft_p95_s:.1f} s"
        if measures.door_p95_s > self.door_p95_max_s:
            return f"sessions wait {measures.door_p95_s:.0f} s at the door (p95)"
        return None


@dataclass(frozen=True, slots=True)
class Answer:
    """The most sessions of a mesh: `result` is their run, `beyond` what broke with one more."""

    mesh: str
    devices: int
    sessions: int
    result: Result | None
    beyond: str | None


def most_sessions(
    play: Callable[[int], Result], promise: Promise, *, most: int
) -> tuple[int, Result | None, str | None]:
    """The most sessions that keep a promise, if fewer keep it too: (sessions, their run, what breaks beyond)."""
    best, best_result, broken = 0, None, None
    low, high, count = 0, most + 1, 8
    while low + 1 < high:
        count = min(max(count, low + 1), high - 1)
        result = play(count)
        fault = promise.broken(result)
        if fault is None:
            low, best, best_result = count, count, result
            count = 2 * count if high == most + 1 else (low + high) // 2
        else:
            high, broken = count, fault
            count = (low + high) // 2
    return best, best_result, broken


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments (without the program's name)."""
    args = _parser().parse_args(argv)
    promise = Promise(args.violating / 100, args.ttft, args.door)
    sessions = read_sessions(args.trace)
    base = Case(
        sessions=1,
        floor_tps=args.floor,
        pool=1.0,
        policies=args.policies,
        host=HOST_SHARES[-1],
        seed=args.seed,
        noise=args.noise,
        model=args.model,
        device=args.device,
        minutes=args.minutes,
        warm_up_minutes=args.warm_up,
        final=args.final,
    )

    def play(case: Case, count: int) -> Result:
        device = device_of(case)
        pool = device.kv_bytes / device.kv_token_bytes / working_set_tokens(sessions, count)
        (result,) = run(
            [replace(case, sessions=count, pool=pool)], args.trace, jobs=1, progress=lambda _: None
        )
        return result

    answers: list[Answer] = []
    for mesh in args.mesh:
        case = replace(base, mesh=mesh)
        best, result, beyond = most_sessions(lambda n, case=case: play(case, n), promise, most=args.most)
        answers.append(Answer(mesh, device_of(case).ranks, best, result, beyond))
    print("\n".join(_table(answers)))
    chosen = max(answers, key=lambda answer: (answer.sessions / answer.devices, -answer.devices))
    if chosen.result is None:
        print("not one session keeps the promises")
        return 1
    tiers = list(_tiers(chosen, base, play)) if "tiers" in base.switches else []
    print("\n".join(_chosen(chosen, tiers)))
    if args.json:
        document = {
            "promise": asdict(promise),
            "answers": [asdict(a) for a in answers],
            "chosen": chosen.mesh,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _tiers(chosen: Answer, base: Case, play: Callable[[Case, int], Result]) -> Iterator[Result]:
    """The chosen sessions with each host tier."""
    for share in HOST_SHARES[:-1]:
        yield play(replace(base, mesh=chosen.mesh, host=share), chosen.sessions)
    assert chosen.result is not None
    yield chosen.result


def _table(answers: Sequence[Answer]) -> Iterator[str]:
    yield (
        f"{'mesh':<6}{'devices':>8}{'sessions':>9}{'a device':>9}{'pool':>7}{'turns/h':>9}{'p10 tps':>9}"
        f"{'TTFT p95':>10}{'hit':>7}  beyond"
    )
    for answer in answers:
        line = (
            f"{answer.mesh:<6}{answer.devices:>8}{answer.sessions:>9}{answer.sessions / answer.devices:>9.1f}"
        )
        if answer.result is not None:
            m = answer.result.measures
            line += (
                f"{answer.result.case.pool:>7.2f}{m.turns_per_hour:>9.0f}{m.tps_p10:>9.1f}{m.ttft_p95_s:>9.2f}s"
                f"{m.hit_share:>7.1%}  {answer.beyond or 'not tried'}"
            )
        yield line


def _chosen(chosen: Answer, tiers: Sequence[Result]) -> Iterator[str]:
    assert chosen.result is not None
    token_bytes = device_of(chosen.result.case).kv_token_bytes
    yield (
        f"chosen: {chosen.mesh}, {chosen.sessions} sessions on {chosen.devices} device(s); KV on the device "
        f"{chosen.result.pool_tokens * token_bytes / 1e9:.0f} GB = {chosen.result.case.pool:.2f} working sets"
    )
    if not tiers:
        return
    ample = tiers[-1].measures.turns_per_hour
    least = next(each for each in tiers if each.measures.turns_per_hour >= AS_GOOD * ample)
    for each in tiers:
        m = each.measures
        mark = " <- least that is as good" if each is least else ""
        yield (
            f"  host tier {each.host_tokens * token_bytes / 1e9:>6.0f} GB: {m.turns_per_hour:>6.0f} turns/h, "
            f"hit {m.hit_share:.1%}, TTFT p95 {m.ttft_p95_s:.2f} s{mark}"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenspeed plan",
        description="Say how many live agent sessions a device holds at a floor, by simulation of a trace.",
    )
    add = parser.add_argument
    add("--trace", type=Path, required=True, metavar="FILE", help="agent_replay lines, or a folder of traces")
    add(
        "--model",
        default="moonlight",
        choices=sorted({model for model, _ in DEVICES}),
        help="step times of it",
    )
    add("--device", default="h200", choices=sorted({device for _, device in DEVICES}), help="on this")
    add("--floor", type=int, required=True, metavar="F", help="tokens per second promised to each")
    add("--mesh", nargs="+", default=["tp1"], metavar="M", help="tp1, tp2, tp4, tp8 (default tp1)")
    add(
        "--policies", default="on", metavar="P", help="off, on, tiers, or switches joined with + (default on)"
    )
    add("--noise", default="noisy", choices=sorted(NOISES), help="how steps stray from the formula")
    add("--violating", type=float, default=0.1, metavar="%", help="windows that may be below the floor (0.1)")
    add("--ttft", type=float, default=15.0, metavar="S", help="p95 of later turns' first token (15 s)")
    add("--door", type=float, default=30.0, metavar="S", help="p95 of a session's wait to be let in (30 s)")
    add(
        "--most",
        type=int,
        default=4 * ROWS_MAX,
        metavar="N",
        help=f"no more sessions than this ({4 * ROWS_MAX})",
    )
    add("--minutes", type=float, default=15.0, help="simulated and measured per try (default 15)")
    add("--warm-up", type=float, default=5.0, metavar="MINUTES", help="before that (default 5)")
    add("--final", action="store_true", help="sessions say which turn is their last")
    add("--seed", type=int, default=0, help="order of sessions, starts, noise")
    add("--json", type=Path, metavar="FILE", help="write everything here")
    return parser
