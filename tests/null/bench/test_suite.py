# SPDX-License-Identifier: MIT
"""The suite runs public commands, goes on after one that failed, and stops where one cannot run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenspeed.base.errors import SetupError
from tokenspeed.bench import suite, summary
from tokenspeed.bench.suite import AGENTIC, PARTS, Part, Usage, run
from tokenspeed.cli.bench import BENCHMARKS

SCHEDULER = ("scheduler", "--rounds", "1", "--running", "2", "--overlap", "off")


def test_parts_are_benchmarks_and_their_files_are_those_the_page_reads() -> None:
    assert {part.words[0] for part in PARTS} <= set(BENCHMARKS)
    assert {part.file for part in PARTS} == {
        summary.SMOKE,
        summary.AGENTIC,
        summary.FRONTEND,
        summary.SCHEDULER,
        summary.ENGINE,
    }


@pytest.mark.slow
def test_served_parts_share_a_server_and_each_part_leaves_its_result(tmp_path: Path) -> None:
    words = (*AGENTIC, "--scale", "0.002", "--concurrency", "1", "--conversations", "1", "--turns-max", "2")
    assert run([Part("s.json", SCHEDULER, out="--json"), Part("a.json", words, served=True)], tmp_path) in (
        [],
        ["s.json"],  # its bars are times, and this machine may be busy
    )
    assert json.loads((tmp_path / "a.json").read_text())["server"]["device"].startswith("cpu: ")
    assert json.loads((tmp_path / "s.json").read_text())["benchmark"] == "scheduler"


def test_a_part_that_fails_is_named_and_one_that_cannot_run_stops_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = iter([1, 0, suite.EXIT_SETUP])

    class Done:
        def __init__(self, *_: object) -> None:
            self.returncode = next(statuses)

    monkeypatch.setattr("subprocess.run", Done)
    assert run([Part("one.json", ("one",)), Part("other.json", ("other",))], tmp_path) == ["one.json"]
    with pytest.raises(SetupError, match="bench third did not run"):
        run([Part("third.json", ("third",))], tmp_path)


def test_usage_tells_our_own_time_from_others() -> None:
    usage = Usage()
    while usage.seconds < 0.05:
        pass
    assert usage.others_share is None or 0 <= usage.others_share <= 1
