# SPDX-License-Identifier: MIT
"""Every window of every request against its floor, and the cause of each that violates it.

In: a `History`. Out: `Violation`s, and how many windows there were. A window opens at a request's first token, or
where the one before closed; it closes with 64 further tokens or after 2 s, and violates a floor where it has fewer
tokens than floor * length. One that the answer's end cut off violates it if a whole one would have been over.

The cause is where most of the time went that the floor did not allow:

- retracted: sent back to wait, until its next token;
- left out: steps ran without a row of it;
- no plan: nothing ran;
- late step: a step took over 1.5 times what steps of its kind take;
- prefill: the prompts computed in its steps;
- too wide: the decode rows of its steps, or the context they read.

What steps of a kind take is fitted here, to the journal's own steps (least squares of relative error), so that no
model of the scheduler's is believed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tokenspeed.audit.journal import History, Request, Step

WINDOW_TOKENS: Final = 64
WINDOW_US: Final = 2_000_000
LATE: Final = 1.5
CAUSES: Final = ("retracted", "left out", "no plan", "late step", "prefill", "too wide")
_SCALES: Final = (1.0, 1.0, 1e5, 1e3, 1e7)  # of a step's base, decode rows, context, prefill tokens, pairs


@dataclass(frozen=True, slots=True)
class Window:
    """A judged span of an answer: `tokens` of them came between `open_us` and `close_us`."""

    open_us: int
    close_us: int
    tokens: int
    whole: bool  # not cut off by the end of the answer

    def violates(self, floor_mtps: int) -> bool:
        tokens = self.tokens if self.whole else WINDOW_TOKENS
        return tokens * 1_000_000_000 < floor_mtps * (self.close_us - self.open_us)


@dataclass(frozen=True, slots=True)
class Violation:
    """A window below its floor; `causes_us` is the time that went to each cause, of which `cause` had most."""

    request_id: int
    floor_mtps: int
    window: Window
    cause: str
    causes_us: dict[str, int]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an audit found."""

    requests: int
    windows: int
    violations: tuple[Violation, ...]


def audit(history: History, *, floor_mtps: int | None = None) -> Verdict:
    """Judge every request by its own floor, or all by `floor_mtps`; those without one are promised nothing."""
    causes = _Causes(history.steps)
    windows = requests = 0
    found: list[Violation] = []
    for request in history.requests:
        floor = request.floor_mtps if floor_mtps is None else floor_mtps
        if floor == 0 or not request.tokens_us:
            continue
        requests += 1
        for window in windows_of(request.tokens_us):
            windows += 1
            if window.violates(floor):
                causes_us = causes.of(request, window, floor)
                cause = max(CAUSES, key=lambda name: causes_us[name])
                found.append(Violation(request.request_id, floor, window, cause, causes_us))
    return Verdict(requests, windows, tuple(found))


def windows_of(tokens_us: Sequence[int]) -> Iterator[Window]:
    """The windows of an answer, by the moments of its tokens."""
    open_us, since = tokens_us[0], 0  # `since`: the last token that an earlier window counted
    while since < len(tokens_us) - 1:
        full = since + WINDOW_TOKENS
        if full < len(tokens_us) and tokens_us[full] <= open_us + WINDOW_US:
            yield Window(open_us, tokens_us[full], WINDOW_TOKENS, whole=True)
            open_us, since = tokens_us[full], full
        elif tokens_us[-1] <= open_us + WINDOW_US:
            yield Window(open_us, tokens_us[-1], len(tokens_us) - 1 - since, whole=False)
            return
        else:
            inside = bisect_right(tokens_us, open_us + WINDOW_US) - 1
            yield Window(open_us, open_us + WINDOW_US, inside - since, whole=True)
            open_us, since = open_us + WINDOW_US, inside


class _Causes:
    """Where the time of a window went."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._ends_us = [step.committed_us for step in steps]
        self._prices = _fit(steps)

    def of(self, request: Request, window: Window, floor_mtps: int) -> dict[str, int]:
        """Microseconds by cause; what the floor allows is taken off the decode rows' part, step by step."""
        allowed_us = 1e9 / floor_mtps
        us: dict[str, float] = dict.fromkeys(CAUSES, 0.0)
        first = bisect_right(self._ends_us, window.open_us)
        for index in range(first, min(bisect_left(self._ends_us, window.close_us) + 1, len(self._steps))):
            step = self._steps[index]
            begin_us = max(window.open_us, self._ends_us[index - 1] if index else window.open_us)
            span_us = max(0, min(step.committed_us, window.close_us) - begin_us)
            if any(since < step.committed_us <= until for since, until in request.away_us):
                us["retracted"] += span_us
            elif not step.rows.get(request.request_id):
                us["left out"] += span_us
            else:
                self._share(us, step, span_us, allowed_us)
        last_us = self._ends_us[-1] if self._ends_us else window.open_us
        us["no plan"] += max(0, window.close_us - max(last_us, window.open_us))
        return {cause: round(each) for cause, each in us.items()}

    def _share(self, us: dict[str, float], step: Step, span_us: float, allowed_us: float) -> None:
        """Divide the time that a step of the request's took."""
        took_us = min(step.step_us or span_us, span_us)
        us["no plan"] += span_us - took_us
        base, rows, context, tokens, pairs = (
            price * count for price, count in zip(self._prices, _counts(step), strict=True)
        )
        normal_us = base + rows + context + tokens + pairs
        if step.step_us > LATE * normal_us > 0:
            us["late step"] += took_us - min(took_us, normal_us)
            took_us = min(took_us, normal_us)
        prefill_us = min(took_us, tokens + pairs)
        us["prefill"] += prefill_us
        us["too wide"] += max(0.0, took_us - prefill_us - allowed_us)


def _counts(step: Step) -> tuple[float, ...]:
    counts = (1, step.decode_rows, step.context_tokens, step.prefill_tokens, step.prefill_pairs)
    return tuple(count / scale for count, scale in zip(counts, _SCALES, strict=True))


def _fit(steps: Sequence[Step]) -> tuple[float, ...]:
    """Prices by `_SCALES`: least squares of relative error, twice, the second time without late steps."""
    known = [(_counts(step), step.step_us) for step in steps if step.step_us > 0]
    prices = (0.0,) * len(_SCALES)
    for again in (False, True):
        size = len(_SCALES)
        matrix = [[1e-9 * (i == j) for j in range(size + 1)] for i in range(size)]
        for counts, took_us in known:
            normal_us = sum(price * count for price, count in zip(prices, counts, strict=True))
            if again and not normal_us / LATE < took_us < normal_us * LATE:
                continue
            for i in range(size):
                for j in range(size):
                    matrix[i][j] += counts[i] * counts[j] / took_us**2
                matrix[i][size] += counts[i] / took_us
        prices = _solve(matrix)
    return prices


def _solve(matrix: list[list[float]]) -> tuple[float, ...]:
    """Gauss and Jordan, with pivots; a price that nothing tells of, or that came out negative, is 0."""
    size = len(matrix)
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(matrix[row][i]))
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        if abs(matrix[i][i]) < 1e-18:
            continue
        for row in range(size):
            if row != i:
                factor = matrix[row][i] / matrix[i][i]
                matrix[row] = [a - factor * b for a, b in zip(matrix[row], matrix[i], strict=True)]
    return tuple(
        max(0.0, row[size] / row[i]) if abs(row[i]) >= 1e-18 else 0.0 for i, row in enumerate(matrix)
    )
