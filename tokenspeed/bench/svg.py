# SPDX-License-Identifier: MIT
"""Plots as SVG text: axes, lines, points and bars, drawn here so that a report needs nothing to be read.

In: series of numbers. Out: one `<svg>` element. Colours are classes (`s0`, `s1`, ...) of `style`, which follows
the reader's light or dark preference; a plot that stands alone carries style and legend inside it. Every mark has a
`<title>`: a browser shows its figures under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

WIDTH: Final = 640
HEIGHT: Final = 360
LEFT: Final = 64
RIGHT: Final = 16
TOP: Final = 16
BOTTOM: Final = 48

LIGHT: Final = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#9a6700", "#bf3989", "#1b7c83", "#57606a")
DARK: Final = ("#4493f8", "#f0883e", "#3fb950", "#ab7df8", "#d29922", "#f778ba", "#39c5cf", "#9198a1")

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


def series_class(index: int) -> str:
    """The class that colours series `index`; colours come round again."""
    return f"s{index % len(LIGHT)}"


@dataclass(frozen=True, slots=True)
class Point:
    """A mark; `hollow` ones are drawn as rings, `note` is shown under the pointer, `label` beside it."""

    x: float
    y: float
    note: str = ""
    label: str = ""
    hollow: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one colour, joined by a line and marked when asked."""

    name: str
    points: Sequence[Point]
    marks: bool = True


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from values to pixels."""

    name: str
    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, name: str, values: Sequence[float], *, log: bool = False) -> Axis:
        """An axis that holds all values: from 0, or between powers of ten."""
        if log:
            positive = [value for value in values if value > 0] or [1.0]
            low = 10.0 ** math.floor(math.log10(min(positive)))
            high = 10.0 ** math.ceil(math.log10(max(positive)))
            return cls(name, low, high if high > low else low * 10, True)
        top = max(values, default=1.0) or 1.0
        step = _step(top)
        return cls(name, 0.0, math.ceil(top / step) * step)

    def share(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high one; values beyond are drawn at the end."""
        if self.log:
            value, low, high = math.log(max(value, self.low)), math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self) -> list[float]:
        if self.log:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            return [10.0**power for power in range(first, last + 1)]
        step = _step(self.high)
        return [step * index for index in range(round(self.high / step) + 1)]


def _step(top: float) -> float:
    """A step of 1, 2 or 5 times a power of ten, four to ten of them up to `top`."""
    power = 10.0 ** math.floor(math.log10(top / 4))
    return next(power * each for each in (1, 2, 5, 10) if top / (power * each) <= 8)


def number(value: float) -> str:
    """A value as a reader wants it: three digits, k and M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


@dataclass(slots=True)
class Plot:
    """A frame with two axes that marks are added to."""

    x: Axis
    y: Axis
    height: int = HEIGHT
    _marks: list[str] = field(default_factory=list[str])
    _names: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    _rules: list[float] = field(default_factory=list[float])

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a value."""
        inner = self.height - TOP - BOTTOM
        return LEFT + self.x.share(x) * (WIDTH - LEFT - RIGHT), TOP + (1 - self.y.share(y)) * inner

    def add(self, series: Series, colour: int) -> None:
        """Draw a series."""
        style = series_class(colour)
        self._names.append((style, series.name))
        places = [self.at(point.x, point.y) for point in series.points]
        if len(places) > 1:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            self._marks.append(
                f'<polyline class="line {style}" points="{line}"><title>{escape(series.name)}</title></polyline>'
            )
        if not series.marks:
            return
        for point, (x, y) in zip(series.points, places, strict=True):
            kind = f"hollow {style}" if point.hollow else style
            note = f"<title>{escape(f'{series.name}: {point.note}')}</title>"
            self._marks.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5">{note}</circle>')
            if point.label:
                end = x > WIDTH - 120
                anchor, shift = ("end", -9) if end else ("start", 9)
                self._marks.append(
                    f'<text x="{x + shift:.1f}" y="{y - 8:.1f}" text-anchor="{anchor}">{escape(point.label)}</text>'
                )

    def rule(self, x: float, label: str) -> None:
        """Draw an upright dashed line with a label."""
        place, bottom = self.at(x, self.y.low)
        below = TOP + 10 + 14 * sum(abs(place - other) < 60 for other in self._rules)
        self._rules.append(place)
        self._marks.append(
            f'<line class="floor" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{bottom:.1f}"/>'
            f'<text x="{place + 4:.1f}" y="{below}">{escape(label)}</text>'
        )

    def bar(self, begin: float, end: float, row: float, height_px: float, style: str, note: str) -> None:
        """Draw a bar along x, centred at `row` of y."""
        (left, middle), (right, _) = self.at(begin, row), self.at(end, row)
        self._marks.append(
            f'<rect class="{style}" stroke="none" x="{left:.2f}" y="{middle - height_px / 2:.1f}" '
            f'width="{max(0.75, right - left):.2f}" height="{height_px:.1f}"><title>{escape(note)}</title></rect>'
        )

    def render(
        self, title: str, *, y_tick: Callable[[float], str] | None = number, alone: bool = False
    ) -> str:
        """The whole element; `y_tick` None leaves the y axis without grid and figures."""
        sheet = f"<style>{style('svg')}</style>{self._legend()}" if alone else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" role="img" '
            f'aria-label="{escape(title, quote=True)}"><title>{escape(title)}</title>{self._frame(y_tick)}'
            f"{''.join(self._marks)}{sheet}</svg>"
        )

    def _frame(self, y_tick: Callable[[float], str] | None) -> str:
        bottom, right = self.height - BOTTOM, WIDTH - RIGHT
        parts: list[str] = []
        for tick in self.x.ticks():
            x, _ = self.at(tick, self.y.low)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{number(tick)}</text>')
        if y_tick is not None:
            for tick in self.y.ticks():
                _, y = self.at(self.x.low, tick)
                parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
                parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{y_tick(tick)}</text>')
        middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
        parts.append(
            f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
            f'<text x="{middle_x}" y="{self.height - 10}" text-anchor="middle">{escape(self.x.name)}</text>'
            f'<text x="14" y="{middle_y}" text-anchor="middle" transform="rotate(-90 14 {middle_y})">'
            f"{escape(self.y.name)}</text>"
        )
        return "".join(parts)

    def _legend(self) -> str:
        parts: list[str] = []
        for index, (style_, name) in enumerate(self._names):
            y = self.height - BOTTOM - 14 - 18 * (len(self._names) - 1 - index)
            x = WIDTH - RIGHT - 12
            parts.append(f'<circle class="{style_}" cx="{x}" cy="{y}" r="5"/>')
            parts.append(f'<text x="{x - 12}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        return "".join(parts)
