# SPDX-License-Identifier: MIT
"""Builds the C++ tests of the control plane with ASan and UBSan, and runs them: one program per floor, and
the worlds.

The build holds the planted bugs; none is in effect unless a test says so. Each must be caught by the worlds,
else the worlds would prove little.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "control-sanitized"
FLOORS = ("base", "kv", "request", "sched", "retention")
PLANTS = range(1, 17)
CAUGHT = 1  # the exit status of a violation; a crash has another


def tool(name: str) -> str:
    """The build tool beside this Python, else the one on the path."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found is not None, f"{name} is missing; `make test` installs it"
    return found


@pytest.fixture(scope="module")
def programs() -> Path:
    cmake = tool("cmake")
    configure = [cmake, "-S", ROOT, "-B", BUILD, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1"]
    configure += ["-DTOKENSPEED_TESTS=ON", "-DTOKENSPEED_SANITIZE=ON", "-DTOKENSPEED_PLANTS=ON"]
    configure += [f"-DTOKENSPEED_CONTROL_OUT={BUILD}"]
    for command in (configure, [cmake, "--build", BUILD, "--target", "control_tests", "-j2"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return BUILD / "csrc" / "tests"


def run(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.parametrize("floor", FLOORS)
def test_floor(programs: Path, floor: str) -> None:
    run([programs / f"control_test_{floor}"])


def test_small_worlds_exhaustively_and_large_ones_at_random(programs: Path) -> None:
    """Every state of ten small worlds (none is cut off), then 10^5 random transitions."""
    run([programs / "control_worlds", "1000000", "100000"])


@pytest.mark.parametrize("plant", PLANTS)
def test_the_worlds_catch_a_planted_bug(programs: Path, plant: int) -> None:
    command = [programs / "control_worlds", "2500", "20000", str(plant)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == CAUGHT, done.stdout[-2000:] + done.stderr[-2000:]
