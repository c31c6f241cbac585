# SPDX-License-Identifier: MIT
"""What real threads did to the real loop is done again, decision for decision. (`recorded.py 100` runs more.)"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def recorded(runs: int, first: int) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "tests/sim/recorded.py", str(runs), str(first)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_recorded_runs_replay_to_the_same_decisions() -> None:
    assert "8 of 8 recorded runs replay to the same decisions" in recorded(8, 1_000)


@pytest.mark.slow
def test_a_hundred_recorded_runs_replay_to_the_same_decisions() -> None:
    assert "100 of 100 recorded runs replay to the same decisions" in recorded(100, 0)
