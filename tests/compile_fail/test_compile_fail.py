# SPDX-License-Identifier: MIT
"""What must not compile does not. Each file is compiled twice: it must compile, and with WRONG it must not.

The first run keeps the second honest: a broken header would make every wrong program "fail as expected". The
line `// floor: NAME.` says which floor's include roots the file sees: its own and those below.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
FLOORS = ("base", "kv", "request", "sched")
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")

assert COMPILER is not None, "no C++ compiler, which the engine is built with"


def compile_file(path: Path, *, wrong: bool) -> subprocess.CompletedProcess[str]:
    match = re.search(r"^// floor: (\w+)\.", path.read_text(), re.MULTILINE)
    assert match, f"{path.name} does not name its floor"
    roots = FLOORS[: FLOORS.index(match[1]) + 1]
    command = [str(COMPILER), "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
    command += [f"-I{CSRC / floor / 'include'}" for floor in roots]
    command += ["-DWRONG"] if wrong else []
    return subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", sorted(HERE.glob("*.cpp")), ids=lambda path: path.stem)
def test_compiles_only_when_right(path: Path) -> None:
    right = compile_file(path, wrong=False)
    assert right.returncode == 0, right.stderr
    assert compile_file(path, wrong=True).returncode != 0


def test_no_floor_includes_upward() -> None:
    for floor in FLOORS:
        for path in (CSRC / floor).rglob("*.[hc]*"):
            for used in re.findall(r'#include "(\w+)/', path.read_text()):
                assert FLOORS.index(used) <= FLOORS.index(floor), f"{path} includes {used}"
