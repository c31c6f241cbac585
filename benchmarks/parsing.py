# SPDX-License-Identifier: MIT
"""What does reading a token cost: reasoning, content and arguments of a call, in every dialect?

    python benchmarks/parsing.py [--tokens N] [--json FILE]

The parser alone, one piece of about five characters at a time as a stream brings them; no detokenising, no HTTP. A
time is CPU time of this process, the least of several runs, per token. `long` is arguments sixteen times as long: where
it differs from `arguments`, a token costs what the answer's length costs. `start` is one parser.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

from tokenspeed.bench.provenance import commit
from tokenspeed.text.tools.families import FAMILIES
from tokenspeed.text.tools.parser import OutputParser
from tokenspeed.text.tools.render import Call, render
from tokenspeed.text.tools.schema import ArgumentTypes
from tokenspeed.text.tools.spec import Dialect

RUNS = 5
PROSE = "Let me look at the file first, and then change what a < b says. "
CODE = 'def f(x: dict[str, int]) -> str:\n    if x["a"] < 3:\n        return "a\\tb"\n    return {}\n\n'
TYPES = ArgumentTypes(
    [{"function": {"name": "write", "parameters": {"properties": {"text": {"type": "string"}}}}}]
)


def pieces_of(text: str) -> list[str]:
    return re.findall(r"\s?\w{1,5}|\s+|[^\w\s]+", text)


def read_us(dialect: Dialect, text: str) -> float:
    """CPU microseconds a piece."""
    pieces = pieces_of(text)
    best_s = float("inf")
    for _ in range(RUNS):
        parser = OutputParser(dialect, types=TYPES)
        started_s = time.process_time()
        for piece in pieces:
            parser.feed(piece)
        parser.flush()
        best_s = min(best_s, time.process_time() - started_s)
    return best_s / len(pieces) * 1e6


def start_us(dialect: Dialect) -> float:
    started_s = time.process_time()
    for _ in range(1000):
        OutputParser(dialect, types=TYPES)
    return (time.process_time() - started_s) * 1e3


def rows(tokens: int) -> list[dict[str, object]]:
    prose = PROSE * (tokens // len(pieces_of(PROSE)))
    code = CODE * (tokens // len(pieces_of(CODE)))
    found: list[dict[str, object]] = []
    for name, dialect in FAMILIES.items():
        texts = {
            "reasoning": render(dialect, reasoning=prose),
            "content": render(dialect, content=prose),
            "arguments": render(dialect, calls=[Call("write", {"text": code})]),
            "long": render(dialect, calls=[Call("write", {"text": code * 16})]),
        }
        times = {what: round(read_us(dialect, text), 2) for what, text in texts.items() if text}
        found.append({"dialect": name, **times, "start": round(start_us(dialect), 2)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = rows(arguments.tokens)
    columns = ("reasoning", "content", "arguments", "long", "start")
    print(f"{'us a token':14}" + "".join(f"{column:>11}" for column in columns))
    for row in found:
        print(f"{row['dialect']!s:14}" + "".join(f"{row.get(column, '-')!s:>11}" for column in columns))
    if arguments.json is not None:
        document = {"commit": commit(), "tokens": arguments.tokens, "unit": "us", "rows": found}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
