# SPDX-License-Identifier: MIT
"""Rows to scores, as docs/guides/benchmarking.md defines them. Pure: same rows, same scores.

A refused, cut or failed request yields no speed and no time to first token, but it fails its level at every
floor: a server cannot buy speed by turning users away. Rates divide by the whole duration of the level, its
ragged end included. Output, uncached prefill and cached tokens are counted apart; only the figure named
`published` mixes them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tokenspeed.bench.record import Level, Result, Row
from tokenspeed.bench.validity import Check, check, check_client

SLOWEST_SHARE: Final = 0.7
"""The p10 of tokens per second may fall to this share of the floor."""
STUDENT_95: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95% quantiles of Student's t for 1..9 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One level against one floor."""

    floor: float
    passed: bool
    slow_calls: int
    """Calls below the floor."""
    late_calls: int
    """Later turns whose first token came after the limit."""


@dataclass(frozen=True, slots=True)
class Scores:
    """One repeat of one level. Rates per second are per GPU; None means that the server did not offer it."""

    load: float
    repeat: int
    calls: int
    failed: int
    user_tps: float
    user_tps_p10: float
    user_tps_pooled: float
    """All (output - 1) over all (latency - TTFT): a burst at the end of a short answer cannot raise it much."""
    ttft_first_s: tuple[float, float]
    """p50 and p95 over first turns."""
    ttft_later_s: tuple[float, float]
    """p50 and p95 over later turns; NaN when there are none."""
    output_tps: float
    prefill_tps: float | None
    cached_tps: float | None
    tpm: float
    """Output tokens per GPU-minute."""
    tpm_published: float
    """Prompt (cached ones too) and output tokens per GPU-minute."""
    hit_rate: float | None
    tokens_per_step: float | None
    checks: tuple[Check, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def valid(self) -> bool:
        return all(check.passed for check in self.checks)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over repeats and the half width of its 95% interval; no width for a single repeat."""

    mean: float
    half: float | None

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + ("" if self.half is None else f" ±{self.half:.2g}")


def percentile(values: Sequence[float], share: float) -> float:
    """The value at `share` of the sorted values, interpolated linearly; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95% interval of repeats by Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, None)
    quantile = STUDENT_95[min(len(values) - 2, len(STUDENT_95) - 1)]
    return Interval(mean, quantile * statistics.stdev(values) / math.sqrt(len(values)))


def ttft_limit_s(floor: float) -> float:
    """How long a later turn may wait for its first token: 1 s, or 2 s at floors up to 70."""
    return 2.0 if floor <= 70 else 1.0


def score(result: Result, level: Level) -> Scores:
    """Score one repeat of one level."""
    rows, seconds, gpus = level.rows, level.duration_s, result.gpus
    answered = [row for row in rows if not row.error]
    speeds = [speed for row in answered if (speed := row.user_tps) is not None]
    first = [row.ttft_us / 1e6 for row in answered if row.turn == 0]
    later = [row.ttft_us / 1e6 for row in answered if row.turn > 0]
    prompt = sum(row.prompt_tokens for row in answered)
    output = sum(row.output_tokens for row in answered)
    cached = cached_tokens(answered)
    rate = 1 / (seconds * gpus)
    checks = (*check(result.workload, rows), check_client(level.client_late_us))
    user_tps = statistics.fmean(speeds) if speeds else 0.0
    user_tps_p10 = percentile(speeds, 0.1) if speeds else 0.0
    late_p95_s = percentile(later, 0.95)
    verdicts = [
        Verdict(
            floor=floor,
            passed=all(each.passed for each in checks)
            and user_tps >= floor
            and user_tps_p10 >= SLOWEST_SHARE * floor
            and not late_p95_s > ttft_limit_s(floor),
            slow_calls=sum(speed < floor for speed in speeds),
            late_calls=sum(wait_s > ttft_limit_s(floor) for wait_s in later),
        )
        for floor in result.floors
    ]
    return Scores(
        load=level.load,
        repeat=level.repeat,
        calls=len(rows),
        failed=len(rows) - len(answered),
        user_tps=user_tps,
        user_tps_p10=user_tps_p10,
        user_tps_pooled=pooled_tps(answered),
        ttft_first_s=(percentile(first, 0.5), percentile(first, 0.95)),
        ttft_later_s=(percentile(later, 0.5), late_p95_s),
        output_tps=output * rate,
        prefill_tps=None if cached is None else (prompt - cached) * rate,
        cached_tps=None if cached is None else cached * rate,
        tpm=output * rate * 60,
        tpm_published=(prompt + output) * rate * 60,
        hit_rate=None if cached is None or not prompt else cached / prompt,
        tokens_per_step=tokens_per_step(answered),
        checks=checks,
        verdicts=tuple(verdicts),
    )


def pooled_tps(rows: Iterable[Row]) -> float:
    """Tokens per second of all answers as one, first tokens left out; 0 when nothing took time."""
    timed = [(row.output_tokens - 1, row.latency_us - row.ttft_us) for row in rows if row.output_tokens > 1]
    spent_us = sum(spent_us for _, spent_us in timed)
    return sum(tokens for tokens, _ in timed) * 1e6 / spent_us if spent_us else 0.0


def cached_tokens(rows: Iterable[Row]) -> int | None:
    """Cached prompt tokens of all rows; None when the server left one unsaid."""
    total = 0
    for row in rows:
        if row.cached_tokens is None:
            return None
        total += row.cached_tokens
    return total


def tokens_per_step(rows: Iterable[Row]) -> float | None:
    """Output tokens per event of a stream: 1 without speculation. None where events hold no ids."""
    tokens = events = 0
    for row in rows:
        if row.event_tokens is None:
            return None
        tokens += sum(row.event_tokens)
        events += len(row.event_tokens)
    return tokens / events if events else None


def by_load(result: Result) -> dict[float, list[Scores]]:
    """All scores, repeats of a level together, in the order measured."""
    levels: dict[float, list[Scores]] = {}
    for level in result.levels:
        levels.setdefault(level.load, []).append(score(result, level))
    return levels


def floor_scores(result: Result) -> dict[float, tuple[float, float] | None]:
    """For each floor the best passing level: (output tokens per second per GPU, load); None where none passes.

    A level passes when every repeat of it does; its score is the mean of the repeats.
    """
    best: dict[float, tuple[float, float] | None] = {}
    levels = by_load(result)
    for index, floor in enumerate(result.floors):
        passing = [
            (statistics.fmean(each.output_tps for each in repeats), load)
            for load, repeats in levels.items()
            if all(each.verdicts[index].passed for each in repeats)
        ]
        best[floor] = max(passing, default=None)
    return best
