# SPDX-License-Identifier: MIT
"""The frontend benchmark: what it sends is a function of its key, what it counts is new, what it says adds up."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from tokenspeed.bench.conversation import Vocabulary
from tokenspeed.bench.frontend import (
    Author,
    Call,
    Reading,
    Row,
    growth,
    main,
    new_tokens,
    report,
    source_text,
)

PAGE = """
# HELP tokenspeed_cpu_seconds_total CPU time of a process, all its threads
tokenspeed_cpu_seconds_total{process="api"} 1.25
tokenspeed_cpu_seconds_total{process="core"} 0.5
tokenspeed_step_seconds_count 12.0
tokenspeed_output_tokens_total 640.0
"""


def call(prompt_tokens: int, output_tokens: int = 10, first_us: int = 1000) -> Call:
    return Call(prompt_tokens, 0, output_tokens, first_us)


def row(phase: str, context_tokens: int, api_us: int, core_us: int) -> Row:
    calls = (call(context_tokens, first_us=2000), call(context_tokens, first_us=4000))
    return Row("chat", phase, context_tokens, calls, 40, 4, api_us, core_us)


def test_text_is_as_long_as_asked_and_a_function_of_its_key() -> None:
    author = Author(Vocabulary(1000), 4.0, seed=1)
    one, same, other = (author.turn("chat", 500, 8, key) for key in (1, 1, 2))
    assert one.texts == same.texts != other.texts
    assert one.texts is not None
    assert 2000 <= len(one.texts[0]) < 2200
    ids = [author.turn("completions", 500, 8, key).ids for key in (1, 1, 2)]
    assert np.array_equal(ids[0], ids[1])
    assert not np.array_equal(ids[0], ids[2])


def test_text_has_many_words() -> None:
    assert len(set(source_text(random.Random(0), 100_000).split())) > 1000


def test_new_tokens_are_those_no_earlier_call_held() -> None:
    calls = [call(100), call(115), call(130)]
    assert new_tokens(calls, 0) == 100 + 10 + 5 + 10 + 5 + 10
    assert new_tokens(calls, 1) == 5 + 10 + 5 + 10


def test_a_page_of_metrics_is_read_and_silence_is_zero() -> None:
    assert Reading.of(PAGE) == Reading(1_250_000, 500_000, 12, 640)
    assert Reading.of("") == Reading(0, 0, 0, 0)


def test_growth_is_the_slope_over_later_turns_alone() -> None:
    rows = [
        row("first", 1000, 1, 1),
        row("later", 1000, 2 * 300, 2 * 50),
        row("first", 2000, 9, 9),
        row("later", 2000, 2 * 400, 2 * 50),
    ]
    assert growth(rows, "chat") == pytest.approx((100.0, 0.0))
    assert growth(rows[:2], "chat") is None
    assert "+100 us of API process and +0 us of core" in report(rows)


def test_a_row_shows_cost_by_request_token_and_step() -> None:
    line = report([row("later", 1000, 600, 100)]).splitlines()[1].split()
    assert line == ["chat", "later", "1.0k", "2", "0.0%", "300", "15.0", "50", "2.5", "25", "3", "4"]


@pytest.mark.slow
def test_a_run_leaves_every_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "c0.json"
    words = ["--sessions", "2", "--contexts", "30000,60000", "--scale", "0.02", "--turns", "2"]
    assert main([*words, "--turn-tokens", "50", "--answer-tokens", "4", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["server"]["device"] == "null: computes nothing"
    assert [(each["api"], each["phase"], each["context_tokens"]) for each in record["rows"]] == [
        (api, phase, context)
        for api in ("completions", "chat")
        for context in (600, 1200)
        for phase in ("first", "later")
    ]
    for each in record["rows"]:
        first = each["phase"] == "first"
        assert len(each["calls"]) == (2 if first else 4)
        assert all(one["output_tokens"] == 4 for one in each["calls"])
        if first:
            lengths = [one["prompt_tokens"] for one in each["calls"]]
            assert lengths == pytest.approx([each["context_tokens"]] * 2, rel=0.2)
        assert all((one["cached_tokens"] > 0) is not first for one in each["calls"])
        assert min(each["api_us"], each["core_us"], each["steps"], each["new_tokens"]) > 0
    assert "more per 1,000 tokens of context" in capsys.readouterr().out
