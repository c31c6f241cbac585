# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenspeed.bench.scheduler import Row, flatness, main, report


def row(context_tokens: int, times_us: tuple[float, ...], bar_us: float | None = None) -> Row:
    return Row("decode", 16, context_tokens, False, bar_us, times_us)


def test_the_table_names_what_missed_its_bar() -> None:
    text = report([row(2048, (1.0, 3.0, 2.0), 1.5), row(4096, (2.0,), 2.5)])
    assert "2.0" in text
    assert text.count("MISSED") == 1


def test_flatness_is_the_distance_from_the_mean_of_the_medians() -> None:
    assert flatness([row(2048, (1.0,)), row(4096, (3.0,))]) == {(16, False): 0.5}


def test_a_run_prints_a_table_and_writes_every_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scheduler.json"
    main(["--rounds", "8", "--running", "2", "--overlap", "on", "--json", str(out)])
    record = json.loads(out.read_text())
    assert [len(each["times_us"]) for each in record["rows"]] == [8, 8, 8, 8, 8, 8]
    assert record["rows"][0]["context_tokens"] == 2048
    assert "16 x 50k blocked" in capsys.readouterr().out
