# SPDX-License-Identifier: MIT
"""All benchmarks that this machine can run, one after the other, in a few minutes: what `make bench` does.

In: a folder for the results, a document. Out: one JSON a part in the folder, one of the whole, and the document's
generated block (`summary`) written anew. Every part is the public command with the options shown here; those
that need a served model share one server of the bundled model. All that is measured here is how long it took
and how much of the machine others had meanwhile. Status 1 means that a part failed a check or missed a bar; the
others still run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from tokenspeed.base.errors import SetupError
from tokenspeed.bench import summary
from tokenspeed.bench.provenance import commit, machine
from tokenspeed.bench.served import serving

EXIT_SETUP: Final = 2


@dataclass(frozen=True, slots=True)
class Part:
    """One benchmark: its words on the command line, and where its result goes."""

    file: str
    words: tuple[str, ...]
    out: str = "--out"
    served: bool = False
    """It asks the server of the bundled model."""


SERVE: Final = ("--max-model-len", "16384", "--rows-max", "8", "--log-level", "error")
AGENTIC: Final = ("agentic", "--workload", "h0")
PARTS: Final = (
    # C2, smoke: seconds, every part of the way from a client to a kernel and back. Another seed than C1's, whose
    # prompts would otherwise begin like these and find them cached.
    Part(
        summary.SMOKE,
        (*AGENTIC, "--scale", "0.01", "--concurrency", "1,2", "--turns-max", "3", "--seed", "1"),
        served=True,
    ),
    # C1: agents at an eighth of their length, real arithmetic.
    Part(
        summary.AGENTIC,
        (*AGENTIC, "--scale", "0.125", "--concurrency", "1,4", "--conversations", "4"),
        served=True,
    ),
    # C0: agents at their full length, no arithmetic.
    Part(summary.FRONTEND, ("frontend",)),
    Part(summary.SCHEDULER, ("scheduler",), out="--json"),
    Part(summary.ENGINE, ("engine",)),
)


class Usage:
    """The time since it was made, and whose CPU time it was."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._own_s = _own_cpu_s()
        self._all_s = _all_cpu_s()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began_s

    @property
    def others_share(self) -> float | None:
        """Share of the machine's cores that others had; None where the system does not say. Children count as
        our own once they have ended.
        """
        if self._all_s is None or (all_s := _all_cpu_s()) is None:
            return None
        others_s = all_s - self._all_s - (_own_cpu_s() - self._own_s)
        return max(0.0, others_s / (self.seconds * (os.cpu_count() or 1)))


def _own_cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _all_cpu_s() -> float | None:
    """CPU time of all processes since the machine started; what a hypervisor took for others counts too."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    except OSError:  # not Linux
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def run(parts: Sequence[Part], folder: Path) -> list[str]:
    """Run the parts; the names of those that failed. `SetupError` where one could not run at all."""
    failed: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        url = stack.enter_context(serving(*SERVE)) if any(part.served for part in parts) else None
        for part in sorted(parts, key=lambda part: not part.served):
            if url is not None and not part.served:
                stack.close()  # the server would take its share of the cores
                url = None
            words = [*part.words, *(("--url", url) if url else ()), part.out, str(folder / part.file)]
            print(f"tokenspeed bench {' '.join(words)}", flush=True)
            started_s = time.monotonic()
            status = subprocess.run([sys.executable, "-m", "tokenspeed.cli", "bench", *words]).returncode
            print(f"[{time.monotonic() - started_s:.1f} s]\n", flush=True)
            if status == EXIT_SETUP or status < 0:
                raise SetupError(f"bench {part.words[0]} did not run")
            if status:
                failed.append(part.file)
    return failed


def main(argv: Sequence[str]) -> int:
    """Run all; print tables, write results and the document. Return 0, or 1 where a part failed."""
    parser = argparse.ArgumentParser(prog="tokenspeed bench all", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--document", type=Path, help="Markdown file whose generated block is written anew")
    options = parser.parse_args(argv)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    usage = Usage()
    failed = run(PARTS, options.out)
    whole = summary.Whole(commit(), machine(), started_at, usage.seconds, usage.others_share, tuple(failed))
    (options.out / summary.WHOLE).write_bytes(msgspec.json.encode(whole) + b"\n")
    if options.document is not None:
        text = options.document.read_text(encoding="utf-8")
        options.document.write_text(summary.splice(text, summary.render(options.out)), encoding="utf-8")
    print(summary.said(whole))
    return int(bool(failed))
