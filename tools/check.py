# SPDX-License-Identifier: MIT
"""`make check`: every check that needs no device and no patience, each with its time; exit code 1 if any fails.

In: the working tree. Out: one line a check, the output of those that failed. The static checks run side by side with
the tests, since most of them wait for one core.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

PYTEST = [sys.executable, "-m", "pytest", "-m", "not slow", "-x", "-p", "no:cacheprovider"]
# About half of the time of the null tests: two halves keep two cores busy.
MODEL_FLOORS = ("kernels", "layers", "models", "sampling", "spmd", "weights")

CHECKS: dict[str, list[str]] = {
    "lint (ruff)": [str(BIN / "ruff"), "check", "."],
    "format (ruff)": [str(BIN / "ruff"), "format", "--check", "."],
    "import contracts": [str(BIN / "lint-imports")],
    "stubs": [sys.executable, "tools/stubs.py", "--check"],
    "types (pyright)": [str(BIN / "pyright")],
    "null tests, model": [*PYTEST, *(f"tests/null/{each}" for each in MODEL_FLOORS)],
    "null tests, rest": [*PYTEST, "tests/null", *(f"--ignore=tests/null/{each}" for each in MODEL_FLOORS)],
}


def run(name: str) -> tuple[str, bool, float, str]:
    """Run one check: (name, passed, seconds, output)."""
    start = time.monotonic()
    done = subprocess.run(CHECKS[name], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return name, done.returncode == 0, time.monotonic() - start, done.stdout


def main() -> int:
    start = time.monotonic()
    failed = False
    with ThreadPoolExecutor(max_workers=2) as pool:
        # The longest first, so that the short ones fill the second core.
        for name, passed, seconds, output in pool.map(run, reversed(CHECKS)):
            print(f"{'ok  ' if passed else 'FAIL'} {name:<18} {seconds:6.1f} s", flush=True)
            if not passed:
                failed = True
                print(output)
    print(f"{'failed' if failed else 'passed'} in {time.monotonic() - start:.1f} s")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
