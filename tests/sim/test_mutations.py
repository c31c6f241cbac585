# SPDX-License-Identifier: MIT
"""Every planted bug of the control plane is found by the simulator, and the product passes the same seeds.

The plants (csrc/base/include/base/plant.h) are compiled once, all together, into an extension of its own;
each runs in a process of its own. Twice: with the control plane's own assertions after every call, and
without them, so that what the simulator sees from outside is shown to suffice alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MUTANTS = ROOT / "build" / "mutants"
SEEDS = 1_000
PLANTS = re.findall(
    r"(\w+) = (\d+), +// (.*)", (ROOT / "csrc/base/include/base/plant.h").read_text(encoding="utf-8")
)


@dataclass(frozen=True)
class Verdict:
    """How a build did over the seeds: `law` is None if it passed them all."""

    seeds: int
    law: str | None
    message: str | None
    seconds: float


def sources_digest() -> str:
    """Names the build: the same sources and Python give the same extension."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.is_file() and (ROOT / "csrc" / "cpu") not in path.parents:
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="module")
def extension() -> Path:
    """The control plane with every plant in it; built if its sources have changed."""
    folder = MUTANTS / sources_digest()
    if not (built := list(folder.glob("_control*.so"))):
        binaries = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        cmake = shutil.which("cmake", path=binaries)
        assert cmake is not None, "cmake is needed to build the mutants"
        options = {
            "CMAKE_BUILD_TYPE": "None",
            "CMAKE_CXX_FLAGS": "-O1",
            "TOKENSPEED_PLANTS": "ON",
            "TOKENSPEED_CONTROL_OUT": folder,
            "Python_EXECUTABLE": sys.executable,
        }
        for stale in MUTANTS.glob("????????????????"):  # of other sources
            shutil.rmtree(stale)
        defines = [f"-D{name}={value}" for name, value in options.items()]
        for command in (
            [cmake, "-S", ROOT, "-B", MUTANTS / "build", "-G", "Ninja", *defines],
            [cmake, "--build", MUTANTS / "build", "--target", "control", "-j", "2"],
        ):
            done = subprocess.run(
                command, env={**os.environ, "PATH": binaries}, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
        built = list(folder.glob("_control*.so"))
    return built[0]


def judge(extension: Path, plant: str, *, audited: bool) -> Verdict:
    """Run the seeds until one fails."""
    start = time.monotonic()
    mode = "audited" if audited else "unaudited"
    done = subprocess.run(
        [sys.executable, ROOT / "tests/sim/mutant.py", extension, plant, str(SEEDS), mode],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    seconds = time.monotonic() - start
    if done.returncode != 0:  # it took the process with it: found, if not elegantly
        return Verdict(0, "died", f"exit code {done.returncode}: {done.stderr[-300:]}", seconds)
    return Verdict(**json.loads(done.stdout), seconds=seconds)


def table(plants: list[tuple[str, str, str]], audited: list[Verdict], unaudited: list[Verdict]) -> list[str]:
    """The mutation report."""
    lines = [f"{'planted bug':<104}{'found by, at seed':>20}{'from outside alone':>20}"]
    for (name, number, meaning), inner, outer in zip(plants, audited, unaudited, strict=True):
        found = [f"{v.law}, {v.seeds}" if v.law else "SURVIVED" for v in (inner, outer)]
        lines.append(f"{number:>2} {name}: {meaning}"[:104].ljust(104) + f"{found[0]:>20}{found[1]:>20}")
    return lines


@pytest.mark.slow
def test_every_planted_bug_is_found(extension: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        audited, unaudited = (
            list(pool.map(lambda plant, mode=mode: judge(extension, plant[1], audited=mode), PLANTS))
            for mode in (True, False)
        )
    with capsys.disabled():
        print()
        print("\n".join(table(PLANTS, audited, unaudited)))
    assert len(PLANTS) >= 8
    survivors = [
        name
        for (name, _, _), *verdicts in zip(PLANTS, audited, unaudited, strict=True)
        if any(verdict.law is None for verdict in verdicts)
    ]
    assert not survivors, f"not found within {SEEDS} seeds"


@pytest.mark.slow
def test_product_passes_the_seeds_that_find_the_bugs(extension: Path) -> None:
    verdict = judge(extension, "0", audited=True)
    assert (verdict.seeds, verdict.law) == (SEEDS, None), verdict.message


SHRUNK = ("dropped_use", "last_token_cached", "partial_freeze", "parent_evicted")
"""Plants that the control plane's own assertions find in the journal of a life."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SHRUNK)
def test_a_planted_bug_shrinks_to_twenty_calls(extension: Path, name: str) -> None:
    number = next(number for plant, number, _ in PLANTS if plant == name)
    done = subprocess.run(
        [sys.executable, ROOT / "tests/sim/shrunk.py", extension, number, str(SEEDS)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    least = json.loads(done.stdout)
    assert least is not None
    assert len(least["left"]) <= 20, least
