# SPDX-License-Identifier: MIT
"""Plots as SVG text, drawn here so that a report needs nothing to be read.

In: a `Plot`. Out: one `<svg>` element. Colours are classes (`s0`, `s1`, ...) of `style`, which follows the reader's
light or dark preference; a plot that stands alone carries style and legend inside it. Every mark has a `<title>`: a
browser shows its figures under the pointer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import Final

from tokenspeed.bench.plot import (
    BOTTOM,
    DARK,
    LEFT,
    LIGHT,
    RIGHT,
    TOP,
    WIDTH,
    Bar,
    Plot,
    Series,
    Tone,
    number,
)

_RULES: Final = """
svg { font: 12px ui-sans-serif, system-ui, sans-serif; color-scheme: light dark }
svg text { fill: var(--soft) }
svg .grid { stroke: var(--line) } svg .axis { stroke: var(--soft) }
svg .floor { stroke: var(--soft); stroke-dasharray: 4 4 }
svg .wait { fill: var(--line) } svg .failed { fill: var(--bad) }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round } svg .hollow { stroke-width: 2 }
"""


def style(root: str) -> str:
    """The style sheet of plots, with the colours declared as variables of `root`."""
    light = "; ".join(f"--c{index}: {colour}" for index, colour in enumerate(LIGHT))
    dark = "; ".join(f"--c{index}: {colour}" for index, colour in enumerate(DARK))
    series = "".join(
        f"svg .s{index} {{ stroke: var(--c{index}); fill: var(--c{index}) }} svg .line.s{index} {{ fill: none }} "
        f"svg .hollow.s{index} {{ fill: var(--paper) }}\n"
        for index in range(len(LIGHT))
    )
    return (
        f"{root} {{ --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --paper: #ffffff; --tint: #f6f8fa; "
        f"--good: #1a7f37; --bad: #cf222e; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ {root} {{ --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; "
        f"--paper: #0d1117; --tint: #151b23; --good: #3fb950; --bad: #f85149; {dark} }} }}{_RULES}{series}"
    )


def render(
    plot: Plot, title: str, *, y_tick: Callable[[float], str] | None = number, alone: bool = False
) -> str:
    """The whole element; `y_tick` None leaves the y axis without grid and figures."""
    sheet = f"<style>{style('svg')}</style>{_legend(plot)}" if alone else ""
    marks = [*_rules(plot)]
    for series in plot.series:
        marks.extend(_series(plot, series))
    marks.extend(_bar(plot, bar) for bar in plot.bars)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {plot.height}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><title>{escape(title)}</title>{_frame(plot, y_tick)}'
        f"{''.join(marks)}{sheet}</svg>"
    )


def _at(plot: Plot, x: float, y: float) -> tuple[float, float]:
    """Pixels of a value."""
    inner = plot.height - TOP - BOTTOM
    return LEFT + plot.x.share(x) * (WIDTH - LEFT - RIGHT), TOP + (1 - plot.y.share(y)) * inner


def _class(tone: Tone) -> str:
    return f"s{tone % len(LIGHT)}" if isinstance(tone, int) else tone


def _series(plot: Plot, series: Series) -> Iterator[str]:
    tone = _class(series.colour)
    places = [_at(plot, point.x, point.y) for point in series.points]
    if len(places) > 1:
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        title = f"<title>{escape(series.name)}</title>"
        yield f'<polyline class="line {tone}" points="{line}">{title}</polyline>'
    if not series.marks:
        return
    for point, (x, y) in zip(series.points, places, strict=True):
        kind = f"hollow {tone}" if point.hollow else tone
        note = f"<title>{escape(f'{series.name}: {point.note}')}</title>"
        yield f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5">{note}</circle>'
        if point.label:
            anchor, shift = ("end", -9) if x > WIDTH - 120 else ("start", 9)
            place = f'x="{x + shift:.1f}" y="{y - 8:.1f}" text-anchor="{anchor}"'
            yield f"<text {place}>{escape(point.label)}</text>"


def _rules(plot: Plot) -> Iterator[str]:
    """Labels of neighbours step down, so that each can be read."""
    places: list[float] = []
    for rule in plot.rules:
        place, bottom = _at(plot, rule.x, plot.y.low)
        label_y = TOP + 10 + 14 * sum(abs(place - other) < 60 for other in places)
        places.append(place)
        yield f'<line class="floor" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{bottom:.1f}"/>'
        yield f'<text x="{place + 4:.1f}" y="{label_y}">{escape(rule.label)}</text>'


def _bar(plot: Plot, bar: Bar) -> str:
    (left, middle), (right, _) = _at(plot, bar.begin, bar.row), _at(plot, bar.end, bar.row)
    return (
        f'<rect class="{_class(bar.tone)}" stroke="none" x="{left:.2f}" y="{middle - bar.height_px / 2:.1f}" '
        f'width="{max(0.75, right - left):.2f}" height="{bar.height_px:.1f}"><title>{escape(bar.note)}</title></rect>'
    )


def _frame(plot: Plot, y_tick: Callable[[float], str] | None) -> str:
    bottom, right = plot.height - BOTTOM, WIDTH - RIGHT
    parts: list[str] = []
    for tick in plot.x.ticks():
        x, _ = _at(plot, tick, plot.y.low)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{number(tick)}</text>')
    if y_tick is not None:
        for tick in plot.y.ticks():
            _, y = _at(plot, plot.x.low, tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{y_tick(tick)}</text>')
    middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
    parts.append(
        f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
        f'<text x="{middle_x}" y="{plot.height - 10}" text-anchor="middle">{escape(plot.x.name)}</text>'
        f'<text x="14" y="{middle_y}" text-anchor="middle" transform="rotate(-90 14 {middle_y})">'
        f"{escape(plot.y.name)}</text>"
    )
    return "".join(parts)


def _legend(plot: Plot) -> str:
    parts: list[str] = []
    for index, series in enumerate(plot.series):
        y = plot.height - BOTTOM - 14 - 18 * (len(plot.series) - 1 - index)
        x = WIDTH - RIGHT - 12
        parts.append(f'<circle class="{_class(series.colour)}" cx="{x}" cy="{y}" r="5"/>')
        parts.append(f'<text x="{x - 12}" y="{y + 4}" text-anchor="end">{escape(series.name)}</text>')
    return "".join(parts)
