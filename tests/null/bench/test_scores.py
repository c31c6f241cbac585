# SPDX-License-Identifier: MIT
"""Scores of a scripted timeline equal what the definitions give by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tokenspeed.base.errors import SetupError
from tokenspeed.bench import record
from tokenspeed.bench.record import Level, Result, Row
from tokenspeed.bench.scores import floor_scores, interval, percentile, score, ttft_limit_s
from tokenspeed.bench.table import level_table


def row(turn: int, sent_us: int, first_us: int, gap_us: int, tokens: int, cached: int) -> Row:
    """An answer of `tokens`, each `gap_us` after the one before, to a prompt of 1000."""
    last_us = first_us + gap_us * (tokens - 1)
    return Row(
        conversation="a",
        turn=turn,
        asked_tokens=tokens,
        sent_us=sent_us,
        end_us=last_us,
        first_us=first_us,
        gaps_us=(gap_us,) * (tokens - 1),
        event_tokens=(1,) * tokens,
        prompt_tokens=1000,
        output_tokens=tokens,
        cached_tokens=cached,
        sent_tokens=1000,
        implied_least=cached,
        implied_most=cached,
    )


# Two turns: 101 tokens at 10 ms (100 tps) after 0.5 s, then 51 at 5 ms (200 tps) after 0.25 s. The second is
# sent at 3.0 s, so the level lasts 3.0 + 0.25 + 50 x 0.005 = 3.5 s.
TIMELINE = (row(0, 0, 500_000, 10_000, 101, 0), row(1, 3_000_000, 3_250_000, 5_000, 51, 960))


def result(*levels: Level, gpus: int = 1) -> Result:
    return Result("run", "h0", "c0ffee", "2026-01-01", 0, "none", gpus, {}, {}, "real", levels)


def test_scores_of_a_timeline_are_those_computed_by_hand():
    scores = score(result(Level(1, 0, TIMELINE)), Level(1, 0, TIMELINE))
    assert scores.user_tps == pytest.approx((100 + 200) / 2)
    assert scores.user_tps_p10 == pytest.approx(100 + 0.1 * 100)
    assert scores.user_tps_pooled == pytest.approx((100 + 50) / (1.0 + 0.25))
    assert scores.ttft_first_s == (0.5, 0.5)
    assert scores.ttft_later_s == (0.25, 0.25)
    assert scores.output_tps == pytest.approx(152 / 3.5)
    assert scores.prefill_tps == pytest.approx((1000 + 40) / 3.5)
    assert scores.cached_tps == pytest.approx(960 / 3.5)
    assert scores.tpm == pytest.approx(152 / 3.5 * 60)
    assert scores.tpm_published == pytest.approx((2000 + 152) / 3.5 * 60)
    assert scores.hit_rate == pytest.approx(0.48)
    assert scores.tokens_per_step == 1
    assert [verdict.passed for verdict in scores.verdicts] == [True, True, False]
    assert [verdict.slow_calls for verdict in scores.verdicts] == [0, 0, 1]


def test_rates_are_per_gpu_and_speeds_are_not():
    one = score(result(Level(1, 0, TIMELINE)), Level(1, 0, TIMELINE))
    four = score(result(Level(1, 0, TIMELINE), gpus=4), Level(1, 0, TIMELINE))
    assert four.user_tps == one.user_tps
    assert four.tpm == pytest.approx(one.tpm / 4)
    assert four.output_tps == pytest.approx(one.output_tps / 4)


def test_inter_token_times_sum_to_end_to_end_less_ttft_exactly():
    uneven = Row("a", 0, 4, sent_us=7, end_us=2_000_000, first_us=1_234_567, gaps_us=(1, 333_333, 99_999))
    assert sum(uneven.gaps_us) == uneven.latency_us - uneven.ttft_us == 433_333


def test_one_late_later_turn_in_ten_fails_a_floor_and_a_late_first_turn_does_not():
    def level(first_us: int, later_us: int) -> Level:
        rows = [row(0, 0, first_us, 1_000, 11, 0)]
        rows += [row(1, 0, 500_000, 1_000, 11, 960) for _ in range(9)]
        return Level(1, 0, (*rows, row(1, 0, later_us, 1_000, 11, 960)))

    def passed(level: Level) -> list[bool]:
        return [verdict.passed for verdict in score(result(level), level).verdicts]

    assert passed(level(60_000_000, 500_000)) == [True, True, True]
    assert passed(level(500_000, 3_000_000)) == [
        True,
        False,
        False,
    ]  # p95 is 1.875 s: within the 2 s of floor 70
    assert passed(level(500_000, 4_000_000)) == [False, False, False]


def test_slow_tenth_fails_a_floor_that_the_mean_reaches():
    rows = tuple(
        row(index > 0, 0, 100_000, gap, 11, 0) for index, gap in enumerate([1_000] * 8 + [25_000] * 2)
    )
    scores = score(result(Level(1, 0, rows)), Level(1, 0, rows))
    assert scores.user_tps > 200
    assert scores.user_tps_p10 == pytest.approx(40)
    assert not any(verdict.passed for verdict in scores.verdicts)


def test_burst_of_a_short_answer_lifts_the_mean_and_hardly_the_pool():
    rows = (*TIMELINE, row(1, 3_300_000, 3_400_000, 1, 3, 960))
    scores = score(result(Level(1, 0, rows)), Level(1, 0, rows))
    assert scores.user_tps > 300_000
    assert scores.user_tps_pooled == pytest.approx(152 / 1.250002)


def test_failed_request_gives_no_tokens_and_fails_every_floor():
    refused = Row("b", 0, 101, sent_us=0, end_us=3_500_000, error="HTTP 429: full")
    scores = score(result(Level(1, 0, (*TIMELINE, refused))), Level(1, 0, (*TIMELINE, refused)))
    assert (scores.calls, scores.failed) == (3, 1)
    assert scores.output_tps == pytest.approx(152 / 3.5)
    assert not any(verdict.passed for verdict in scores.verdicts)


def test_score_of_a_floor_is_the_best_level_that_passes_in_every_repeat():
    fast = Level(2, 0, TIMELINE)
    slow = Level(4, 0, tuple(row(index, 0, 100_000, 100_000, 101, 0) for index in range(2)))
    scores = floor_scores(
        result(Level(1, 0, TIMELINE), fast, Level(1, 1, TIMELINE), Level(2, 1, slow.rows), slow)
    )
    assert scores[70] == (pytest.approx(152 / 3.5), 1)
    assert scores[200] is None


def test_percentile_interpolates_between_neighbours():
    assert percentile([1, 2, 3, 4, 5], 0.5) == 3
    assert percentile([10, 20], 0.95) == pytest.approx(19.5)
    assert percentile([7], 0.1) == 7
    assert math.isnan(percentile([], 0.5))


def test_interval_is_student_s():
    # Mean 2, standard deviation 1, t(2) = 4.303: half = 4.303 / sqrt(3).
    assert interval([1, 2, 3]).half == pytest.approx(4.303 / math.sqrt(3))
    assert interval([5]).half is None


def test_limit_of_later_turns_is_two_seconds_at_seventy_only():
    assert [ttft_limit_s(floor) for floor in (70, 100, 200)] == [2, 1, 1]


def test_result_survives_its_file_and_others_are_refused(tmp_path: Path):
    written = result(Level(1, 0, TIMELINE))
    record.write(written, tmp_path / "deep" / "a.json")
    assert record.read(tmp_path / "deep" / "a.json") == written
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(SetupError, match=r"b\.json: not a result"):
        record.read(tmp_path / "b.json")
    record.write(result(), tmp_path / "c.json")
    with pytest.raises(SetupError, match="holds no rows"):
        record.read(tmp_path / "c.json")


def test_table_says_what_failed_and_when_repeats_are_too_few():
    text, valid = level_table(result(Level(1, 0, TIMELINE)))
    assert valid
    assert "fewer than three repeats" in text
    assert "floor 100: 43.43 output tokens/s/GPU at 1" in text
    assert "floor 200: no level passes" in text
    leaky = tuple(Row(**{**_fields(each), "cached_tokens": 999}) for each in TIMELINE)
    text, valid = level_table(result(Level(1, 0, leaky)))
    assert not valid
    assert "INVALID 1 (1): reuse: 99.9% where the prompts imply 48.0%" in text


def _fields(row: Row) -> dict[str, object]:
    return {name: getattr(row, name) for name in Row.__slots__}
