# SPDX-License-Identifier: MIT
"""What does it cost to hold answers to a grammar: to compile it, to mask a token, to a step's other rows?

    python benchmarks/grammars.py --tokenizer DIR [--json FILE]

`request` is a request with so many tools, one of which must be called: in the API process the grammar is written and
tried, in the core compiled over the vocabulary; `cached` is the same request again. `masks` walks such an answer,
twice on copies of one compiled grammar, token by token as the tokenizer splits it, and then many answers at once.
`steps` runs the real loop with overlap on a device that takes 5 ms a step and computes nothing: how long a step
of 32 rows takes when none, some or all of them have a grammar. Times of `request` and of walks are CPU
time of the thread that works, all others wall time.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import Future
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tokenspeed.base.clock import MonotonicClock
from tokenspeed.base.constraint import Constraint
from tokenspeed.base.sampling import SamplingParams
from tokenspeed.bench.provenance import commit, machine
from tokenspeed.control import Scheduler, SchedulerOptions
from tokenspeed.engine import wire
from tokenspeed.engine.constraints import Constraints
from tokenspeed.engine.desk import Desk
from tokenspeed.engine.loop import Loop
from tokenspeed.exec.null import NullExecutor
from tokenspeed.text.grammar import ToolOffer, Wanted, constraint_for
from tokenspeed.text.grammar.matcher import Checked, Masks, Vocabulary, Walk, compiled
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.text.tools.families import FAMILIES
from tokenspeed.text.tools.render import Call, render

DIALECTS = ("hermes", "qwen3_coder", "kimi_k2", "harmony")
ARGUMENTS = {
    "path": "/work/space/src/main/module/file_name.py",
    "old_str": "def f(x):\n    return x + 1  # the next one\n" * 4,
    "options": {"deep": True, "list": [{"k": "some words in a string", "v": 12.5}, {"k": "b"}]},
}
ROWS, STEP_US, STEPS = 32, 5000, 120


def tool(index: int, suffix: str = "") -> ToolOffer:
    listed = {
        "type": "object",
        "properties": {"k": {"type": "string"}, "v": {"type": "number"}},
        "required": ["k"],
    }
    options = {"deep": {"type": "boolean"}, "list": {"type": "array", "items": listed}}
    schema = {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "Where the file is, from the root of the workspace."},
            "old_str": {"type": "string"},
            f"count_{index}": {"type": "integer", "minimum": 0},
            "mode": {"type": "string", "enum": ["read", "write", f"mode_{index}"]},
            "options": {"type": "object", "properties": options},
        },
        "required": ["path"],
    }
    return ToolOffer(f"tool_{index}{suffix}", schema)


def wall_ms(work: Any) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def cpu_ms(work: Any) -> tuple[float, Any]:
    started = time.thread_time()
    made = work()
    return (time.thread_time() - started) * 1e3, made


def memory_mib() -> float:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    return int(line.split()[1]) / 1024


def of_request(vocabulary: Vocabulary, name: str, count: int) -> tuple[dict[str, Any], Constraint]:
    """Times of one request, first and again: the least of several, each of tools with other names."""
    runs = [of_tools(vocabulary, name, count, suffix) for suffix in ("", "_b", "_c")]
    times = {what: round(min(times[what] for times, _ in runs), 3) for what in runs[0][0]}
    cold, cached = times["front_ms"] + times["core_ms"], times["front_cached_ms"] + times["core_cached_ms"]
    row = {"dialect": name, "tools": count, **times, "cold_ms": round(cold, 1), "cached_ms": round(cached, 1)}
    return row, runs[0][1]


def of_tools(
    vocabulary: Vocabulary, name: str, count: int, suffix: str
) -> tuple[dict[str, float], Constraint]:
    """Times of one request."""
    wanted = Wanted(tools=[tool(index, suffix) for index in range(count)], choice="required")
    checked = Checked()

    def front() -> Constraint:
        constraint = constraint_for(FAMILIES[name], wanted)
        assert constraint is not None
        checked.check(constraint)
        return constraint

    front_ms, constraint = cpu_ms(front)
    core_ms, matcher = cpu_ms(lambda: compiled(constraint, vocabulary))
    times = {
        "grammar_kib": len(constraint.grammar) / 1024,
        "front_ms": front_ms,
        "front_cached_ms": min(cpu_ms(front)[0] for _ in range(3)),
        "core_ms": core_ms,
        "core_cached_ms": min(cpu_ms(matcher.deep_copy)[0] for _ in range(3)),
    }
    return times, constraint


def of_masks(
    tokenizer: Tokenizer, vocabulary: Vocabulary, name: str, constraint: Constraint
) -> dict[str, Any]:
    """Microseconds of masks along an answer, and for many answers at once."""
    text = render(FAMILIES[name], calls=[Call("tool_3", ARGUMENTS)])
    if name == "harmony":
        text = text.removesuffix("<|call|>")
    ids = tokenizer.encode(text, add_special_tokens=False)
    base = Walk(compiled(constraint, vocabulary))
    masks = Masks(vocabulary, 1)
    out = np.zeros((64, vocabulary.words), np.int32)
    times: list[list[float]] = []
    for _ in range(5):
        walk, own = base.copy(), []
        for token in ids:
            started = time.thread_time()
            masks.fill([walk], out[:1])
            taken = walk.take(token)
            own.append((time.thread_time() - started) * 1e6)
            assert taken, walk.error
        times.append(own)
    many: dict[str, float] = {}
    for rows in (1, 8, 64):
        walks = [base.copy() for _ in range(rows)]
        for token in ids[: len(ids) // 2]:
            for walk in walks:
                walk.take(token)
        for threads in (1, 2):
            masks = Masks(vocabulary, threads)
            spent = [wall_ms(lambda: masks.fill(walks, out[:rows])) * 1e3 for _ in range(20)]  # noqa: B023
            many[f"rows_{rows}_threads_{threads}_us"] = round(median(spent), 1)
    first, later = np.array(times[0]), np.array(times[1:])
    return {
        "dialect": name,
        "tokens": len(ids),
        "first_walk_us": {"median": round(float(np.median(first)), 1), "max": round(float(first.max()), 1)},
        "later_walks_us": {
            "median": round(float(np.median(later)), 1),
            "p99": round(float(np.percentile(later, 99)), 1),
            "max": round(float(later.max()), 1),
        },
        **many,
    }


class World:
    """The real loop on a device that computes nothing."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        options = SchedulerOptions(
            blocks_total=8192, block_tokens=16, slots_max=ROWS, tokens_per_step_max=4096, rows_per_step_max=ROWS,
            prefill_tokens_max=2048, waiting_max=ROWS, context_tokens_max=4096, overlap=True, hash_key=bytes(16),
        )  # fmt: skip
        ready: Future[Vocabulary] = Future()
        ready.set_result(vocabulary)
        constraints = Constraints(ready, vocab=vocabulary.size, threads=2, wake=lambda: None)
        desk = Desk(Scheduler(options), vocab_size=vocabulary.size, constraints=constraints)
        self.inbox: list[wire.Request] = []
        self.open = 0
        executor = NullExecutor(slots=ROWS, step_us=STEP_US)
        self.loop = Loop(desk, executor, self, self, MonotonicClock(), overlap=True)

    def drain(self, *, wait: bool) -> list[wire.Request]:
        messages, self.inbox = self.inbox, []
        return messages

    def send(self, report: wire.Report) -> None:
        if isinstance(report, wire.Deltas):
            self.open -= sum(delta.finish is not None for delta in report.items)


def of_steps(vocabulary: Vocabulary, constraint: Constraint, held: int) -> dict[str, Any]:
    """Milliseconds a step, of 32 rows of which `held` have a grammar."""
    world = World(vocabulary)
    prompt = wire.ids_bytes(np.arange(1000, 1040))
    for row in range(ROWS):
        params = SamplingParams(tokens_max=STEPS, seed=0)
        own = constraint if row < held else None
        world.inbox.append(wire.Generate(row + 1, prompt, params, constraint=own))
    world.open = ROWS
    while world.open:
        world.loop.turn()
    gaps = np.diff([r.retired_us for r in world.loop.timeline.recent][10:]) / 1e3
    return {
        "rows": ROWS,
        "with_grammar": held,
        "step_ms": {
            "median": round(float(np.median(gaps)), 3),
            "p99": round(float(np.percentile(gaps, 99)), 3),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.load(arguments.tokenizer)
    before = memory_mib()
    vocabulary_ms, vocabulary = cpu_ms(lambda: Vocabulary.of(tokenizer))
    found: dict[str, Any] = {
        "commit": commit(),
        "machine": str(machine()),
        "vocabulary": {
            "tokens": vocabulary.size,
            "ms": round(vocabulary_ms),
            "mib": round(memory_mib() - before),
        },
        "request": [],
        "masks": [],
        "steps": [],
    }
    print(json.dumps(found["vocabulary"]))
    words = constraint_for(FAMILIES["hermes"], Wanted(tools=[tool(0)], choice="required"))
    for name in DIALECTS:
        for count in (1, 16, 128):
            row, constraint = of_request(vocabulary, name, count)
            found["request"].append(row)
            print(json.dumps(row))
        found["masks"].append(of_masks(tokenizer, vocabulary, name, constraint))
        print(json.dumps(found["masks"][-1]))
    assert words is not None
    for held in (0, 1, 8, ROWS):
        found["steps"].append(of_steps(vocabulary, words, held))
        print(json.dumps(found["steps"][-1]))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
