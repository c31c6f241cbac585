# SPDX-License-Identifier: MIT
"""How do these runs compare? Results of `bench agentic` as tables, plots and one page that needs no network.

In: result files, overlaid in the order given. Out: tables on the terminal, `--html` a self-contained page,
`--svg` and `--png` folders of plots. All figures are computed from the rows of the files by the same code; a level that
failed a check is drawn hollow and named as invalid, never left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Final

from tokenspeed.bench import record, svg
from tokenspeed.bench.plot import LIGHT, Axis, Bar, Plot, Point, Rule, Series, Tone, number
from tokenspeed.bench.record import Level, Result, Row
from tokenspeed.bench.scores import Scores, by_load, floor_scores, interval
from tokenspeed.bench.table import level_table

CURVE_POINTS: Final = 200
HEADROOM: Final = 1.1
"""Kept free above the highest mark, for the labels of floors."""
LANES_MAX: Final = 24
LANE_PX: Final = 14

TEMPLATE: Final = Path(__file__).with_suffix(".html")


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot with its name in files, its title and one sentence that says how to read it."""

    name: str
    title: str
    text: str
    plot: Plot
    y_tick: Callable[[float], str] | None = number

    def svg(self, *, alone: bool) -> str:
        return svg.render(self.plot, self.title, y_tick=self.y_tick, alone=alone)


def main(argv: Sequence[str]) -> int:
    """Print tables and write what was asked for. Return 0, or 1 where a run has an invalid level."""
    options = _parser().parse_args(argv)
    results = [record.read(path) for path in options.results]
    every_valid = True
    for result in results:
        text, valid = level_table(result)
        print(text, end="\n\n")
        every_valid = every_valid and valid
    if options.html:
        options.html.write_text(page(results))
    if options.svg:
        options.svg.mkdir(parents=True, exist_ok=True)
        for figure in figures(results):
            (options.svg / f"{figure.name}.svg").write_text(figure.svg(alone=True) + "\n")
    if options.png:
        _write_images(results, options.png)
    return 0 if every_valid else 1


def _write_images(results: Sequence[Result], directory: Path) -> None:
    """Raises `SetupError` where the extra that draws them is not installed."""
    from tokenspeed.bench import png  # here, because it needs an extra

    directory.mkdir(parents=True, exist_ok=True)
    for figure in figures(results):
        png.write(figure.plot, figure.title, directory / f"{figure.name}.png", y_tick=figure.y_tick)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenspeed bench report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("results", nargs="+", type=Path, help="files written by bench agentic --out")
    parser.add_argument("--html", type=Path, help="write one self-contained page to this file")
    parser.add_argument("--svg", type=Path, help="write the plots to this folder")
    parser.add_argument("--png", type=Path, help="write the plots to this folder as images (extra `plots`)")
    return parser


def figures(results: Sequence[Result]) -> list[Figure]:
    """All plots of these results."""
    return [
        _pareto(results),
        _distribution(
            results,
            "ttft",
            "Time to first token, later turns",
            "seconds",
            lambda row: [row.ttft_us / 1e6] if row.turn else [],
        ),
        _distribution(
            results,
            "inter-token",
            "Time between tokens",
            "milliseconds",
            lambda row: [gap_us / 1e3 for gap_us in row.gaps_us],
        ),
        _distribution(
            results,
            "ttft-first",
            "Time to first token, first turns",
            "seconds",
            lambda row: [] if row.turn else [row.ttft_us / 1e6],
        ),
        *_occupancy(results),
        *(_timeline(result, index) for index, result in enumerate(results)),
    ]


def _pareto(results: Sequence[Result]) -> Figure:
    levels = [by_load(result) for result in results]
    every = [scores for each in levels for scores in each.values()]
    # What failed a check does not set the scale: it is drawn at the edge if it lies beyond.
    scaling = [scores for scores in every if all(s.valid for s in scores)] or every
    speeds = [_mean(scores, _speed) for scores in scaling]
    rates = [_mean(scores, _tpm) for scores in scaling]
    floors = sorted({floor for result in results for floor in result.floors})
    shown = [floor for floor in floors if floor <= 2 * max(speeds, default=1.0)]
    plot = Plot(
        Axis.over("tokens per second and user", [*speeds, *shown]),
        Axis.over("output tokens per GPU-minute", [*rates, HEADROOM * max(rates, default=0.0)]),
    )
    for floor in shown:
        plot.rules.append(Rule(floor, f"floor {floor:g}"))
    for index, (result, each) in enumerate(zip(results, levels, strict=True)):
        unit = " requests/s" if result.open_loop else ""
        points = [
            Point(
                x=_mean(scores, _speed),
                y=_mean(scores, _tpm),
                note=f"load {load:g}{unit}: {interval([_speed(s) for s in scores])} tps/user, "
                f"{interval([_tpm(s) for s in scores])} TPM",
                label=f"{load:g}",
                hollow=not all(s.valid for s in scores),
            )
            for load, scores in each.items()
        ]
        plot.series.append(Series(result.name, points, colour=index))
    text = "Up and to the right is better. Each mark is a level, labelled with its load; a hollow one is invalid."
    return Figure("pareto", "Speed of a user against work of a GPU", text, plot)


def _speed(scores: Scores) -> float:
    return scores.user_tps


def _tpm(scores: Scores) -> float:
    return scores.tpm


def _mean(repeats: Sequence[Scores], of: Callable[[Scores], float]) -> float:
    return statistics.fmean(map(of, repeats))


def _distribution(
    results: Sequence[Result], name: str, title: str, unit: str, of: Callable[[Row], Sequence[float]]
) -> Figure:
    """One curve a run at its highest load: the share of values below x."""
    curves: list[tuple[int, str, list[float]]] = []
    for index, result in enumerate(results):
        load = max(level.load for level in result.levels)
        rows = [row for level in result.levels if level.load == load for row in level.rows if not row.error]
        values = sorted(value for row in rows for value in of(row))
        curves.append((index, f"{result.name}, {load:g}", values))
    every = [value for _, _, values in curves for value in values]
    plot = Plot(
        Axis.over(unit, every, log=True), Axis(f"share of {'tokens' if 'inter' in name else 'turns'}", 0, 1)
    )
    for index, label, values in curves:
        if not values:
            continue
        steps = min(CURVE_POINTS, len(values))
        picks = [round(step * (len(values) - 1) / max(1, steps - 1)) for step in range(steps)]
        points = [Point(max(values[pick], plot.x.low), (pick + 1) / len(values)) for pick in picks]
        plot.series.append(Series(label, [Point(points[0].x, 0.0), *points], marks=False, colour=index))
    text = "Share of values up to x at each run's highest load. Steeper and further left is better."
    return Figure(name, title, text, plot, "{:.0%}".format)


def _occupancy(results: Sequence[Result]) -> list[Figure]:
    """KV that requests hold, at the highest load of each run; no figure when no server says."""
    drawn: list[tuple[int, str, list[Point]]] = []
    for index, result in enumerate(results):
        load = max(level.load for level in result.levels)
        level = next(level for level in result.levels if level.load == load)
        points = [Point(at_us / 1e6, share) for at_us, share in level.occupancy if at_us >= 0]
        if points:
            drawn.append((index, f"{result.name}, {load:g}", points))
    if not drawn:
        return []
    seconds = [point.x for _, _, points in drawn for point in points]
    plot = Plot(Axis.over("seconds", seconds), Axis("share of KV memory", 0, 1))
    for index, name, points in drawn:
        plot.series.append(Series(name, points, marks=False, colour=index))
    text = "KV that requests hold, as the server says once a second, at each run's highest load."
    return [Figure("occupancy", "KV occupancy", text, plot, "{:.0%}".format)]


def _timeline(result: Result, colour: int) -> Figure:
    """Sessions of the highest load as lanes: waiting for the first token, then tokens, then their own time."""
    load = max(level.load for level in result.levels)
    level: Level = next(level for level in result.levels if level.load == load)
    lanes = list(dict.fromkeys(row.conversation for row in level.rows))
    shown = lanes[:LANES_MAX]
    seconds = max(row.end_us for row in level.rows) / 1e6
    height = 64 + max(3, len(shown)) * LANE_PX
    plot = Plot(Axis.over("seconds", [seconds]), Axis("session", 0, len(shown)), height)
    for row in level.rows:
        if row.conversation not in shown:
            continue
        place = len(shown) - shown.index(row.conversation) - 0.5
        plot.bars.extend(_turn_bars(row, place, colour))
    more = f"; {len(lanes) - len(shown)} more are not drawn" if len(lanes) > len(shown) else ""
    text = f"Grey waits for the first token, colour receives tokens, blank is the session's own time{more}."
    title = f"Sessions of {result.name} at {load:g}"
    return Figure(f"timeline-{colour}", title, text, plot, None)


def _turn_bars(row: Row, place: float, colour: int) -> list[Bar]:
    """One turn in its lane: the wait, then the tokens; or all of it, where it failed."""
    head = f"{row.conversation}, turn {row.turn}: "

    def bar(begin_us: int, end_us: int, thinner_px: int, tone: Tone, note: str) -> Bar:
        return Bar(begin_us / 1e6, end_us / 1e6, place, LANE_PX - thinner_px, tone, head + note)

    if row.error:
        return [bar(row.sent_us, row.end_us, 8, "failed", row.error)]
    cached = "" if row.cached_tokens is None else f", {row.cached_tokens} cached"
    wait = f"{row.ttft_us / 1e6:.3f} s to the first token; prompt {row.prompt_tokens}{cached}"
    speed = "" if row.user_tps is None else f", {row.user_tps:.1f} tokens/s"
    return [
        bar(row.sent_us, row.first_us, 8, "wait", wait),
        bar(row.first_us, row.last_us, 5, colour, f"{row.output_tokens} tokens{speed}"),
    ]


def page(results: Sequence[Result]) -> str:
    """The whole report as HTML without a reference to anything outside it."""
    names = ", ".join(dict.fromkeys(result.workload for result in results))
    legend = " &nbsp; ".join(_key(index) + escape(result.name) for index, result in enumerate(results))
    drawn = [
        f'<div class="card"><h2>{escape(figure.title)}</h2><p>{escape(figure.text)}</p>'
        f'<div class="plot">{figure.svg(alone=False)}</div></div>'
        for figure in figures(results)
    ]
    return Template(TEMPLATE.read_text()).substitute(
        title=f"Agentic benchmark: {escape(names)}",
        subtitle=legend,
        style=svg.style(":root"),
        warnings=_warning_box(_warnings(results)),
        scores=_score_cards(results),
        plots="".join(drawn),
        table=_level_rows(results),
        checks=_check_rows(results),
        runs=_run_rows(results),
    )


def _key(index: int) -> str:
    return f'<span class="key" style="background: var(--c{index % len(LIGHT)})"></span>'


def _warning_box(warnings: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<div class="warning"><ul>{items}</ul></div>' if items else ""


def _warnings(results: Sequence[Result]) -> list[str]:
    warnings: list[str] = []
    for result in results:
        invalid = [each for repeats in by_load(result).values() for each in repeats if not each.valid]
        if invalid:
            loads = ", ".join(dict.fromkeys(f"{each.load:g}" for each in invalid))
            warnings.append(f"{result.name}: levels {loads} are invalid; see the checks.")
        if len(result.levels) < 3 * len({level.load for level in result.levels}):
            warnings.append(f"{result.name}: fewer than three repeats; no claim rests on this run.")
    for name in ("workload", "seed", "device", "answers"):
        values = {str(getattr(result, name)) for result in results}
        if len(values) > 1:
            warnings.append(f"The runs differ in {name}: {', '.join(sorted(values))}.")
    scales = {str(result.config.get("scale")) for result in results}
    if len(scales) > 1:
        warnings.append(f"The runs differ in scale: {', '.join(sorted(scales))}.")
    return warnings


def _score_cards(results: Sequence[Result]) -> str:
    cards: list[str] = []
    for index, result in enumerate(results):
        for floor, best in floor_scores(result).items():
            value = "none" if best is None else number(best[0])
            where = "no level passes" if best is None else f"at {best[1]:g}"
            cards.append(
                f'<div class="score">{_key(index)}<span>{escape(result.name)}, floor {floor:g}</span>'
                f"<b>{value}</b><span>{where}</span></div>"
            )
    return "".join(cards)


def _cells(*cells: str, tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _level_rows(results: Sequence[Result]) -> str:
    floors = sorted({floor for result in results for floor in result.floors})
    head = (
        "run",
        "load",
        "tps/user",
        "p10",
        "pooled",
        "TTFT first p95",
        "later p95",
        "output/s",
        "prefill/s",
        "cached/s",
    )
    head = (
        *head,
        "TPM",
        "TPM published",
        "hit rate",
        "tokens/step",
        "failed",
        *(f"{floor:g}" for floor in floors),
    )
    rows = [_cells(*head, tag="th")]
    for index, result in enumerate(results):
        for load, repeats in by_load(result).items():

            def mean(
                of: Callable[[Scores], float | None], unit: str = "", repeats: Sequence[Scores] = repeats
            ) -> str:
                values = [value for each in repeats if (value := of(each)) is not None]
                if len(values) < len(repeats):
                    return "-"
                found = interval(values)
                half = "" if found.half is None else f"<small>±{number(found.half)}</small>"
                return f"{number(found.mean)}{unit}{half}"

            rows.append(
                _cells(
                    _key(index) + escape(result.name),
                    f"{load:g}",
                    mean(lambda each: each.user_tps),
                    mean(lambda each: each.user_tps_p10),
                    mean(lambda each: each.user_tps_pooled),
                    mean(lambda each: each.ttft_first_s[1], " s"),
                    mean(lambda each: each.ttft_later_s[1], " s"),
                    mean(lambda each: each.output_tps),
                    mean(lambda each: each.prefill_tps),
                    mean(lambda each: each.cached_tps),
                    mean(lambda each: each.tpm),
                    mean(lambda each: each.tpm_published),
                    mean(lambda each: None if each.hit_rate is None else 100 * each.hit_rate, "%"),
                    mean(lambda each: each.tokens_per_step),
                    str(sum(each.failed for each in repeats)),
                    *(_verdict(repeats, floor) for floor in floors),
                )
            )
    return f"<table>{''.join(rows)}</table>"


def _verdict(repeats: Sequence[Scores], floor: float) -> str:
    verdicts = [verdict for each in repeats for verdict in each.verdicts if verdict.floor == floor]
    if not verdicts:
        return "-"
    if all(verdict.passed for verdict in verdicts):
        return '<span class="pass">pass</span>'
    slow, late = (
        sum(getattr(verdict, name) for verdict in verdicts) for name in ("slow_calls", "late_calls")
    )
    return f'<span class="fail" title="{slow} calls below the floor, {late} later turns late">fail</span>'


def _check_rows(results: Sequence[Result]) -> str:
    rows: list[str] = []
    for index, result in enumerate(results):
        for load, repeats in by_load(result).items():
            for each in repeats:
                if not rows:
                    rows.append(
                        _cells("run", "load", "repeat", *(check.name for check in each.checks), tag="th")
                    )
                findings = (
                    f'<span class="{"pass" if check.passed else "fail"}">{escape(check.said)}</span>'
                    for check in each.checks
                )
                rows.append(
                    _cells(_key(index) + escape(result.name), f"{load:g}", str(each.repeat + 1), *findings)
                )
    return f"<table>{''.join(rows)}</table>"


def _run_rows(results: Sequence[Result]) -> str:
    rows = [
        _cells("run", "workload", "answers", "device", "GPUs", "seed", "scale", "client", "started", tag="th")
    ]
    for index, result in enumerate(results):
        rows.append(
            _cells(
                _key(index) + escape(result.name),
                escape(result.workload),
                escape(result.answers),
                escape(result.device),
                str(result.gpus),
                str(result.seed),
                escape(str(result.config.get("scale", "-"))),
                escape(result.commit),
                escape(result.started_at),
            )
        )
    details = "".join(
        f"<details><summary>{escape(result.name)}: configuration</summary><ul>"
        + "".join(
            f"<li>{escape(str(name))}: {escape(str(value))}</li>" for name, value in result.config.items()
        )
        + "".join(
            f"<li>server {escape(str(name))}: {escape(str(value))}</li>"
            for name, value in result.server.items()
        )
        + "</ul></details>"
        for result in results
    )
    return f"<table>{''.join(rows)}</table>{details}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
