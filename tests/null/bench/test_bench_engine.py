# SPDX-License-Identifier: MIT
"""The engine benchmark on the bundled model and on no model: what it measures is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokenspeed.base import config
from tokenspeed.base.clock import MonotonicClock
from tokenspeed.base.errors import SetupError
from tokenspeed.bench.engine import Decode, Front, Prefill, Prompts, main, report
from tokenspeed.engine.boot import boot

SMALL = [
    "--steps",
    "2,5",
    "--repeats",
    "2",
    "--threads",
    "1",
    "--kv-cache-bytes",
    "8MiB",
    "--block-tokens",
    "16",
]


def bench(tmp_path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Run the command; the exit status and the record."""
    out = tmp_path / "engine.json"
    status = main([*SMALL, "--out", str(out), *words])
    return status, json.loads(out.read_text())


def test_a_step_is_the_time_between_two_tokens_over_their_distance() -> None:
    row = Decode(4, 100, 400, 1_000_000, ((10, 20, 30), (40, 40, 40), (10, 10, 10)))
    assert row.step_us == 20
    assert row.tokens_per_s == 200_000
    assert Prefill(100, 50, (1_000_000, 2_000_000, 3_000_000)).tokens_per_s == 25
    lines = report([row], [], ["2 x 9: no"]).splitlines()
    assert lines[1].split() == ["4", "100", "0.020", "50000.0", "200000.0", "400"]
    assert lines[-1] == "left out: 2 x 9: no"


def test_prompts_share_what_was_asked_and_nothing_else() -> None:
    prompts = Prompts(1000, shared_tokens=8, seed=3)
    one, same, other = (prompts.draw(32, row) for row in (1, 1, 2))
    assert (one == same).all()
    assert (one[:8] == other[:8]).all()
    assert (one[8:] != other[8:]).any()
    assert one.min() >= 16


def test_grid_on_the_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, record = bench(tmp_path, "--batch", "1,2", "--contexts", "40", "--prefills", "48")
    assert status == 0
    assert record["device"].startswith("cpu: ")
    assert [(row["batch"], row["context_tokens"], row["fill_tokens"]) for row in record["decode"]] == [
        (1, 40, 40),
        (2, 40, 80),
    ]
    assert all([len(steps) for steps in row["steps_us"]] == [3, 3] for row in record["decode"])
    (prefill,) = record["prefill"]
    assert (prefill["context_tokens"], prefill["computed_tokens"], len(prefill["times_us"])) == (48, 48, 2)
    assert ["prefill chunk", "512 tokens"] in [choice[:2] for choice in record["resolved"]]
    assert "tps/user" in capsys.readouterr().out


def test_a_shared_prefix_is_computed_once(tmp_path: Path) -> None:
    words = (
        "--device",
        "null",
        "--shared-prefix",
        "32",
        "--batch",
        "4",
        "--contexts",
        "48",
        "--prefills",
        "40",
    )
    _, record = bench(tmp_path, *words)
    assert record["decode"][0]["fill_tokens"] == 4 * (48 - 32)
    assert record["prefill"][0]["computed_tokens"] == 40 - 32


def test_what_does_not_fit_is_left_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "--device",
        "null",
        "--kv-cache-bytes",
        "512",
        "--batch",
        "1,4",
        "--contexts",
        "256",
        "--prefills",
        "",
    )
    status, record = bench(tmp_path, *words)
    assert status == 1
    assert [row["batch"] for row in record["decode"]] == [1]
    assert record["left_out"] == ["4 x 256: takes 68 KV blocks, there are 32"]
    assert "left out: 4 x 256" in capsys.readouterr().out


def test_a_refused_prompt_ends_the_benchmark() -> None:
    core = boot(config.build(device="null", max_model_len=64, kv_cache_bytes=1024))
    front = Front(core, MonotonicClock())
    front.start([Prompts(1000, 0, 0).draw(65, 1)], 1)
    with pytest.raises(SetupError, match="refused"):
        front.finish()


def test_decode_whose_prompts_were_not_cached_is_refused(tmp_path: Path) -> None:
    words = (
        "--device",
        "null",
        "--no-prefix-cache",
        "--prefill-tokens-max",
        "16",
        "--batch",
        "4",
        "--contexts",
        "48",
    )
    with pytest.raises(SetupError, match="only 0 prompt tokens were found in the cache"):
        bench(tmp_path, *words, "--prefills", "")
