# SPDX-License-Identifier: MIT
"""Plots as data: axes, lines, marks, rules and bars, before anybody has decided what draws them.

In: series of numbers. Out: a `Plot` that `svg` and `png` render alike. Colours are series numbers; values stay in the
units of their axes. It knows no pixels, save that bars and heights have a size of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

WIDTH: Final = 640
HEIGHT: Final = 360
LEFT: Final = 64
RIGHT: Final = 16
TOP: Final = 16
BOTTOM: Final = 48

LIGHT: Final = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#9a6700", "#bf3989", "#1b7c83", "#57606a")
DARK: Final = ("#4493f8", "#f0883e", "#3fb950", "#ab7df8", "#d29922", "#f778ba", "#39c5cf", "#9198a1")
"""Colours of series on paper and on black; they come round again."""

Tone = int | Literal["wait", "failed"]
"""What a bar is filled with: the colour of a series, or a meaning."""


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
    colour: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """An upright dashed line with a label."""

    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar along x, centred at `row` of y."""

    begin: float
    end: float
    row: float
    height_px: float
    tone: Tone
    note: str


@dataclass(frozen=True, slots=True)
class Axis:
    """A named range of values, linear or in powers of ten."""

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

    def within(self, value: float) -> float:
        """The value, or the end of the axis that it lies beyond."""
        return min(self.high, max(self.low, value))

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
    """A frame with two axes that marks are added to, drawn in this order: rules, series, bars."""

    x: Axis
    y: Axis
    height: int = HEIGHT
    rules: list[Rule] = field(default_factory=list[Rule])
    series: list[Series] = field(default_factory=list[Series])
    bars: list[Bar] = field(default_factory=list[Bar])
