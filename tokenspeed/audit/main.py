# SPDX-License-Identifier: MIT
"""`tokenspeed audit LOG`: recompute every floor window of a journal and name the cause of each violation.

Exit code 0 if every window kept its floor, 1 if one did not, 2 where the file is no journal.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from tokenspeed.audit.floors import CAUSES, Verdict, Violation, audit
from tokenspeed.audit.journal import read

SHOWN: Final = 20


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments (without the program's name)."""
    parser = argparse.ArgumentParser(
        prog="tokenspeed audit", description="Recompute every floor window of an event log."
    )
    parser.add_argument("log", type=Path, metavar="LOG", help="a journal: FILE of --event-log")
    parser.add_argument(
        "--floor", type=float, metavar="F", help="judge all by F tokens per second, not by what was promised"
    )
    parser.add_argument("--all", action="store_true", help=f"print every violation, not the first {SHOWN}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every violation here")
    args = parser.parse_args(argv)
    try:
        history = read(args.log.read_bytes())
    except (OSError, ValueError) as error:
        print(f"tokenspeed audit: {args.log}: {error}", file=sys.stderr)
        return 2
    verdict = audit(history, floor_mtps=None if args.floor is None else round(args.floor * 1000))
    print("\n".join(report(verdict, lost=history.lost, shown=sys.maxsize if args.all else SHOWN)))
    if args.json:
        args.json.write_text(json.dumps(asdict(verdict), indent=1) + "\n")
    return 1 if verdict.violations else 0


def report(verdict: Verdict, *, lost: int, shown: int) -> Iterator[str]:
    """A verdict, line by line."""
    violations = verdict.violations
    share = len(violations) / verdict.windows if verdict.windows else 0.0
    yield (
        f"{verdict.windows} windows of {verdict.requests} requests with a floor, "
        f"{len(violations)} below it ({share:.3%})"
    )
    if lost:
        yield f"the log lacks its first {lost} records: answers that had begun before are judged from there"
    causes = Counter(violation.cause for violation in violations)
    for cause in CAUSES:
        if causes[cause]:
            yield f"  {cause:<10} {causes[cause]:>6}"
    for violation in violations[:shown]:
        yield _line(violation)
    if len(violations) > shown:
        yield f"  and {len(violations) - shown} more (--all)"


def _line(violation: Violation) -> str:
    window = violation.window
    length_us = window.close_us - window.open_us
    parts = ", ".join(f"{cause} {us / 1000:.0f}" for cause, us in violation.causes_us.items() if us >= 500)
    return (
        f"  request {violation.request_id} at {window.open_us / 1e6:.3f} s: {window.tokens} tokens in "
        f"{length_us / 1000:.0f} ms, floor {violation.floor_mtps / 1000:g}: {violation.cause} (ms: {parts})"
    )
