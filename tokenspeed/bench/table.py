# SPDX-License-Identifier: MIT
"""A result as text: a line a level, its failed checks, the score of each floor."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from tokenspeed.bench.record import Result
from tokenspeed.bench.scores import Scores, by_load, floor_scores, interval

COLUMNS = (
    "load",
    "tps/user",
    "p10",
    "pooled",
    "TTFT first p50/p95 s",
    "later p50/p95 s",
    "output/s",
    "prefill/s",
    "cached/s",
    "TPM",
    "TPM published",
    "hit",
    "tok/step",
    "failed",
)


def level_table(result: Result) -> tuple[str, bool]:
    """The table, and whether every level passed its checks."""
    levels = by_load(result)
    header = (*COLUMNS, *(f"floor {floor:g}" for floor in result.floors))
    lines = [header, *(_line(load, repeats) for load, repeats in levels.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]
    scores = [scores for repeats in levels.values() for scores in repeats]
    failures = [
        f"INVALID {each.load:g} ({each.repeat + 1}): {check.name}: {check.said}"
        for each in scores
        for check in each.checks
        if not check.passed
    ]
    left_out = sum(level.left_out for level in result.levels)
    notes = [f"{left_out} requests do not fit the context and were left out"] if left_out else []
    if len(result.levels) < 3 * len(levels):
        notes.append("fewer than three repeats: no claim rests on this")
    head = f"{result.name}: {result.workload}, answers {result.answers}, device {result.device}, {result.gpus} GPU"
    return "\n".join([head, *rows, *failures, *_floors(result), *notes]), not failures


def _line(load: float, repeats: Sequence[Scores]) -> tuple[str, ...]:
    def mean(of: Callable[[Scores], float | None]) -> str:
        values = [value for each in repeats if (value := of(each)) is not None]
        return "-" if len(values) < len(repeats) or any(map(math.isnan, values)) else str(interval(values))

    def pair(of: Callable[[Scores], tuple[float, float]]) -> str:
        return f"{_short(repeats, of, 0)}/{_short(repeats, of, 1)}"

    return (
        f"{load:g}",
        mean(lambda each: each.user_tps),
        mean(lambda each: each.user_tps_p10),
        mean(lambda each: each.user_tps_pooled),
        pair(lambda each: each.ttft_first_s),
        pair(lambda each: each.ttft_later_s),
        mean(lambda each: each.output_tps),
        mean(lambda each: each.prefill_tps),
        mean(lambda each: each.cached_tps),
        mean(lambda each: each.tpm),
        mean(lambda each: each.tpm_published),
        mean(lambda each: each.hit_rate),
        mean(lambda each: each.tokens_per_step),
        str(sum(each.failed for each in repeats)),
        *(_verdict(repeats, index) for index in range(len(repeats[0].verdicts))),
    )


def _short(repeats: Sequence[Scores], of: Callable[[Scores], tuple[float, float]], index: int) -> str:
    values = [of(each)[index] for each in repeats]
    return "-" if any(map(math.isnan, values)) else f"{statistics.fmean(values):.3g}"


def _verdict(repeats: Sequence[Scores], index: int) -> str:
    verdicts = [each.verdicts[index] for each in repeats]
    if all(verdict.passed for verdict in verdicts):
        return "pass"
    if not all(each.valid for each in repeats):
        return "invalid"
    slow = sum(verdict.slow_calls for verdict in verdicts)
    late = sum(verdict.late_calls for verdict in verdicts)
    return f"fail ({slow} slow, {late} late)"


def _floors(result: Result) -> list[str]:
    lines: list[str] = []
    for floor, best in floor_scores(result).items():
        said = "no level passes" if best is None else f"{best[0]:.4g} output tokens/s/GPU at {best[1]:g}"
        lines.append(f"floor {floor:g}: {said}")
    return lines
