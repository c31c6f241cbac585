# SPDX-License-Identifier: MIT
"""`python -m tokenspeed.sim.figures`: what the committed studies of the trace simulator add up to, as a table.

In: `sim-*.json` in the folder of results. Out: the block of docs/benchmarks.md between its markers. Every figure is
computed from the rows; nothing is typed by hand. Cells of three seeds show the mean and, where it matters, the
worst.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Final

from tokenspeed.base.errors import SetupError

BEGIN: Final = "<!-- written by `python -m tokenspeed.sim.figures`: begin -->"
END: Final = "<!-- written by `python -m tokenspeed.sim.figures`: end -->"
AGING_S: Final = 600

Row = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Rewrite the block of a document."""
    parser = argparse.ArgumentParser(
        prog="python -m tokenspeed.sim.figures", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--document", type=Path, default=Path("docs/benchmarks.md"))
    args = parser.parse_args(argv)
    text = args.document.read_text()
    if BEGIN not in text or END not in text:
        raise SetupError(f"{args.document} has no block to write: it lacks {BEGIN}")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    args.document.write_text(head + BEGIN + "\n" + "\n".join(block(args.results)) + "\n" + END + tail)
    return 0


def block(results: Path) -> Iterator[str]:
    """The lines between the markers."""
    rows = {name: _rows(results / f"sim-{name}.json") for name in ("exact", "noisy", "retention", "tenants")}
    yield from _promises(rows)
    yield ""
    yield from _grid(rows["exact"])


def _rows(path: Path) -> list[Row]:
    return json.loads(path.read_text())["rows"]


def _promises(rows: dict[str, list[Row]]) -> Iterator[str]:
    exact, noisy = rows["exact"], rows["noisy"]
    ours = [row for row in exact if row["case"]["policies"] == "tiers"]
    yield "| what | bar | measured | |"
    yield "|---|---|---|---|"
    for name, some, bar in (
        ("exact step times", ours, 0.0),
        ("15% noise, 1% of steps 3x late", noisy, 0.001),
    ):
        violating, windows = (
            sum(row["measures"][key] for row in some) for key in ("windows_violating", "windows")
        )
        verdict = "met" if violating <= bar * windows else "missed"
        yield f"| windows below their floor, {name} | {bar:.1%} | {violating} of {windows} | {verdict} |"
    yield from _ratios(exact)
    yield _line(
        "TTFT p95 of later turns, worst run", 15.0, max(m["ttft_p95_s"] for m in _measures(ours)), " s"
    )
    yield _line("recompute with the host tier, share of prompt tokens, worst run", 0.1,
                max(m["recompute_share"] for m in _measures(ours)), share=True)  # fmt: skip
    yield _line(
        "Jain's index over sessions, worst run", 0.9, min(m["jain"] for m in _measures(ours)), least=True
    )
    yield _line("longest wait of any turn", AGING_S, max(m["wait_max_s"] for m in _measures(ours)), " s")
    ample = [row["measures"] for row in exact + noisy if row["case"]["pool"] >= 1]
    gap = max(m["hit_bound_share"] - m["hit_share"] for m in ample)
    yield _line("hit rate below the endless cache's, pool >= 1.0, worst run", 0.01, gap, share=True)
    yield from _against_belady(rows["retention"])
    yield from _tenants(rows["tenants"])
    speed = min(row["speed"] for row in exact + noisy)
    yield _line("simulated time over CPU time, slowest run", 60, speed, "x", least=True)


def _measures(rows: Sequence[Row]) -> Iterator[Row]:
    return (row["measures"] for row in rows)


def _line(
    what: str, bar: float, value: float, unit: str = "", *, least: bool = False, share: bool = False
) -> str:
    met = value >= bar if least else value <= bar
    sign = ">=" if least else "<="
    shown = (f"{bar:.0%}", f"{value:.2%}") if share else (f"{bar:g}{unit}", f"{value:.3g}{unit}")
    return f"| {what} | {sign} {shown[0]} | {shown[1]} | {'met' if met else 'missed'} |"


def _ratios(exact: Sequence[Row]) -> Iterator[str]:
    """Turns an hour at the most sessions against policies off, by pool."""
    most = max(row["case"]["sessions"] for row in exact)
    for pool in sorted({row["case"]["pool"] for row in exact}):
        for policies in ("on", "tiers"):
            found = [
                _turns(row) / _turns(other)
                for row in exact
                if (row["case"]["sessions"], row["case"]["pool"]) == (most, pool)
                and row["case"]["policies"] == policies
                and (other := _off(row, exact)) is not None
            ]
            if found:
                name = "host tier" if policies == "tiers" else "no host tier"
                met = min(found) >= 1.8, mean(found) >= 1.8
                verdict = "met" if met[0] else "met in the mean" if met[1] else "missed"
                yield (
                    f"| turns an hour at N = {most} over policies off, pool {pool:g}, {name} | >= 1.8x | "
                    f"{mean(found):.2f}x ({min(found):.2f} to {max(found):.2f}) | {verdict} |"
                )


def _turns(row: Row) -> float:
    return row["measures"]["turns_per_hour"]


def _off(row: Row, rows: Sequence[Row]) -> Row | None:
    """The run with policies off of the same sessions, pool, floor and seed."""
    key = ("sessions", "pool", "floor_tps", "seed")
    wanted = [row["case"][each] for each in key]
    return next(
        (r for r in rows if r["case"]["policies"] == "off" and [r["case"][each] for each in key] == wanted),
        None,
    )


def _against_belady(rows: Sequence[Row]) -> Iterator[str]:
    """Prompt tokens computed again, over those that Belady's choice would have computed again."""
    for pool in sorted({row["case"]["pool"] for row in rows}):
        some = [row for row in rows if row["case"]["pool"] == pool]
        prompt = sum(row["bounds"]["prompt_tokens"] for row in some)
        ours = sum(row["measures"]["recompute_share"] * row["bounds"]["prompt_tokens"] for row in some)
        least = sum(row["bounds"]["endless_tokens"] - row["bounds"]["belady_tokens"] for row in some)
        ratio = ours / least if least else float("inf")
        verdict = "met" if ratio <= 1.2 else "missed"
        yield (
            f"| recompute over Belady's, retention alone, pool {pool:g} | <= 1.2x | {ratio:.2f}x "
            f"({ours / prompt:.2%} of prompt tokens against {least / prompt:.2%}) | {verdict} |"
        )


def _tenants(rows: Sequence[Row]) -> Iterator[str]:
    """What the others lose when the last tenant has ten times the sessions."""
    for policies, name in (("off", "policies off"), ("tiers", "ours")):
        rates: dict[bool, list[float]] = {False: [], True: []}
        for row in rows:
            tenants = row["case"]["tenants"]
            if row["case"]["policies"] == policies:
                of_lane = list(row["measures"]["turns_per_hour_of_lane"].values())
                rates[tenants.count(tenants[-1]) > tenants.count(tenants[0])].append(mean(of_lane[:-1]))
        cost = max(0.0, 1 - mean(rates[True]) / mean(rates[False]))
        worst = max(1 - ten / one for one, ten in zip(rates[False], rates[True], strict=True))
        verdict = (
            ""
            if policies == "off"
            else "met"
            if worst <= 0.1
            else "met in the mean"
            if cost <= 0.1
            else "missed"
        )
        yield (
            f"| turns an hour that a tenant of 10x load costs the others, {name} | <= 10% | "
            f"{cost:.1%} (worst seed {worst:.1%}) | {verdict} |"
        )


def _grid(rows: Sequence[Row]) -> Iterator[str]:
    """A line per number of sessions, pool and policies; floors side by side."""
    floors = sorted({row["case"]["floor_tps"] for row in rows})
    yield "Means of three seeds: turns an hour / windows below the floor / TTFT p95 of later turns, by floor."
    yield ""
    yield "| N | pool | policies | " + " | ".join(f"floor {floor}" for floor in floors) + " | hit | endless |"
    yield "|---|---|---|" + "---|" * (len(floors) + 2)
    key = ("sessions", "pool", "policies")
    order = {"off": 0, "on": 1, "tiers": 2}
    cells = sorted(
        {tuple(row["case"][each] for each in key) for row in rows}, key=lambda c: (*c[:2], order[c[2]])
    )
    for cell in cells:
        some = [row for row in rows if tuple(row["case"][each] for each in key) == cell]
        shown: list[str] = []
        for floor in floors:
            m = [row["measures"] for row in some if row["case"]["floor_tps"] == floor]
            if not m:
                shown.append("")
                continue
            windows, below = sum(each["windows"] for each in m), sum(each["windows_violating"] for each in m)
            ttft = mean(each["ttft_p95_s"] for each in m)
            shown.append(
                f"{mean(each['turns_per_hour'] for each in m):,.0f} / {below / windows:.1%} / {ttft:.1f} s"
            )
        hit, bound = (
            mean(row["measures"][each] for row in some) for each in ("hit_share", "hit_bound_share")
        )
        yield (
            f"| {cell[0]} | {cell[1]:g} | {cell[2]} | " + " | ".join(shown) + f" | {hit:.1%} | {bound:.1%} |"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
