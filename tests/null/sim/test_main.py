# SPDX-License-Identifier: MIT
"""The command: reports, exit codes, and a way to see a failure again."""

from __future__ import annotations

import pytest

from tokenspeed.sim import executor
from tokenspeed.sim.main import main


def test_passing_seeds_give_a_report_and_exit_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "20", "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("20 seeds, 0 failed, ")
    assert "prefix hits" in out
    assert "overlap: step n+1 is launched before step n is read" in out


def test_one_seed_prints_its_events(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "5", "--trace"]) == 0
    out = capsys.readouterr().out
    assert "step 1: (request, start, length)" in out
    assert out.splitlines()[-1].startswith("seed 5 passed: ")


def test_failure_prints_the_law_and_a_command_and_exits_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "NOT_FINITE", 7)
    assert main(["--seeds", "400", "--jobs", "1"]) == 1
    out = capsys.readouterr().out
    command = next(line for line in out.splitlines() if line.startswith("again: ")).split()[3:]
    assert command[0] == "--seed"
    assert command[-1] == "--trace"
    assert main(command) == 1
    again = capsys.readouterr().out
    assert next(line for line in again.splitlines() if " failed: " in line) in out


def test_unknown_feature_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--without", "overlap,gravity"]) == 2
    assert "unknown feature gravity; known: overlap, " in capsys.readouterr().err
