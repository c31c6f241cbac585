# SPDX-License-Identifier: MIT
"""Plots as PNG images, drawn by matplotlib: for places that show no SVG.

In: a `Plot`. Out: a file, on white, at twice the size of the SVG. It is imported only where images are asked for:
matplotlib is the extra `plots`, and `SetupError` names it where it is not installed. Notes under the pointer are lost.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tokenspeed.base.errors import SetupError
from tokenspeed.bench.plot import BOTTOM, LEFT, LIGHT, RIGHT, TOP, WIDTH, Bar, Plot, Series, Tone, number

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator
except ImportError as error:
    raise SetupError(f"--png needs matplotlib: pip install 'tokenspeed[plots]' ({error})") from error

INCH_PX: Final = 80
DOTS_PER_INCH: Final = 160
SOFT: Final = "#59636e"
LINE: Final = "#d1d9e0"
_TONES: Final = {"wait": LINE, "failed": "#cf222e"}
_TITLE_PX: Final = 12


def write(plot: Plot, title: str, path: Path, *, y_tick: Callable[[float], str] | None = number) -> None:
    """Draw a plot into a file; `y_tick` None leaves the y axis without grid and figures."""
    height = plot.height + _TITLE_PX
    figure = Figure(figsize=(WIDTH / INCH_PX, height / INCH_PX), dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    inner = plot.height - TOP - BOTTOM
    box = (LEFT / WIDTH, BOTTOM / height, (WIDTH - LEFT - RIGHT) / WIDTH, inner / height)
    axes = figure.add_axes(box)
    _frame(axes, plot, title, y_tick)
    for rule in plot.rules:
        axes.axvline(rule.x, color=SOFT, linestyle="--", linewidth=0.8)
        axes.annotate(
            rule.label, (rule.x, 1), xycoords=("data", "axes fraction"), xytext=(3, -9),
            textcoords="offset points", fontsize=8, color=SOFT,
        )  # fmt: skip
    for series in plot.series:
        _series(axes, plot, series)
    for bar in plot.bars:
        _bar(axes, plot, bar, inner)
    if plot.series:
        axes.legend(loc="lower right", fontsize=8, frameon=False, labelcolor=SOFT)
    figure.savefig(path)


def _colour(tone: Tone) -> str:
    return LIGHT[tone % len(LIGHT)] if isinstance(tone, int) else _TONES[tone]


def _frame(axes: Any, plot: Plot, title: str, y_tick: Callable[[float], str] | None) -> None:
    axes.set_title(title, fontsize=10, color="#1f2328", loc="left")
    axes.set_xscale("log" if plot.x.log else "linear")
    axes.set_xlim(plot.x.low, plot.x.high)
    axes.set_ylim(plot.y.low, plot.y.high)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(plot.x.ticks(), [number(tick) for tick in plot.x.ticks()])
    axes.set_yticks([] if y_tick is None else plot.y.ticks())
    if y_tick is not None:
        axes.set_yticklabels([y_tick(tick) for tick in plot.y.ticks()])
    axes.set_xlabel(plot.x.name, fontsize=9, color=SOFT)
    axes.set_ylabel(plot.y.name, fontsize=9, color=SOFT)
    axes.tick_params(labelsize=8, colors=SOFT, length=0)
    axes.grid(visible=True, color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)


def _series(axes: Any, plot: Plot, series: Series) -> None:
    """Values beyond an axis are drawn at its end, as in the SVG."""
    colour = _colour(series.colour)
    places = [(plot.x.within(point.x), plot.y.within(point.y)) for point in series.points]
    axes.plot(*zip(*places, strict=True), color=colour, linewidth=1.6, label=series.name)
    if not series.marks:
        return
    for point, place in zip(series.points, places, strict=True):
        face = "white" if point.hollow else colour
        axes.plot(*place, marker="o", markersize=6, color=colour, markerfacecolor=face, clip_on=False)
        axes.annotate(
            point.label, place, xytext=(5, 4), textcoords="offset points", fontsize=8, color=SOFT
        )  # fmt: skip


def _bar(axes: Any, plot: Plot, bar: Bar, inner_px: int) -> None:
    height = bar.height_px * (plot.y.high - plot.y.low) / inner_px
    axes.barh(bar.row, bar.end - bar.begin, height, left=bar.begin, color=_colour(bar.tone), linewidth=0)
